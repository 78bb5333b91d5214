"""Writes the memory table as JSON lines, CSV, text and a picture. Each row is a record."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from experiments.configs.objectives import PAIRS
from experiments.memory.rows import (
    CONTSUP,
    DECODER,
    END_TO_END,
    JOINED,
    LOCAL_REMATERIALIZED,
    NAIVE,
    REMATERIALIZED,
    SCANNED,
    Row,
)
from experiments.tables import terminal_table, write_csv
from kd_local.files import from_fields, read_json_lines, replace_text, replacing
from kd_local.sizes import MIB

CSV, LINES, PICTURE = "memory.csv", "memory.jsonl", "memory.png"


@dataclass(frozen=True)
class RowFigures:
    """The figures of a row; bytes are of one device.

    Attributes:
        method: one of `experiments.memory.rows.METHODS`.
        auxiliary: the auxiliary network of local learning; None for other methods.
        context: the context of local learning; None for other methods.
        modules: K; 1 for end to end and for distillation.
        boundaries: names of the blocks after which the network is cut.
        batch: images of a step, over all devices.
        peak_bytes: predicted peak, while the largest piece of the step runs: its temporary memory, arguments and
            outputs, the state of all modules, and the tensors carried past it.
        state_bytes: parameters, statistics and optimizer state of all modules.
        carried_bytes: tensors carried between modules while the largest piece runs.
        temp_bytes: temporary memory of the largest piece.
        floor_bytes: a lower bound for any form of the step, see `kd_local.memory.floor_bytes`.
        ratio: peak relative to end to end; for distillation, relative to the student end to end.
        kd_ratio: peak of distillation relative to plain KD; None for other methods, and if there is no row of plain KD.
        flops: floating-point operations of a step.
        deployed_multiply_adds: multiply-adds of the deployed network for one image.
        executables: number of different executables.
        compile_seconds: time of compilation, summed over the executables.
        saved_bytes: activations that the gradient of a module saves; the largest value of all modules.
        measured_bytes: measured peak of real steps; None if it was not measured.
        largest: the piece with the highest peak.
    """

    method: str
    auxiliary: str | None
    context: str | None
    modules: int
    boundaries: tuple[str, ...]
    target: str
    batch: int
    peak_bytes: int
    state_bytes: int
    carried_bytes: int
    temp_bytes: int
    floor_bytes: int
    ratio: float
    kd_ratio: float | None
    flops: int
    flops_ratio: float
    deployed_multiply_adds: int
    executables: int
    compile_seconds: float
    saved_bytes: int
    saved_ratio: float
    measured_bytes: int | None
    largest: str


def write(records: Mapping[Row, RowFigures], workdir: Path, *, title: str) -> None:
    """Writes all files of the table, in the order of the mapping."""
    replace_text(workdir / LINES, "".join(json.dumps(asdict(record)) + "\n" for record in records.values()))
    lines = [{**asdict(record), "boundaries": " ".join(record.boundaries)} for record in records.values()]
    write_csv(workdir / CSV, [field.name for field in fields(RowFigures)], lines)
    with replacing(workdir / PICTURE) as file:
        draw(list(records.values()), title=title).savefig(file, dpi=120, format="png")


def read(rows: Sequence[Row], workdir: Path, *, target: str, batch: int) -> dict[Row, RowFigures]:
    """The records of these rows from an earlier start. Damaged records and those of another version are left out."""
    found = {}
    for record in read_json_lines(workdir / LINES, partial(from_fields, RowFigures)):
        row = Row(record.method, record.modules, record.context, record.auxiliary)
        if row in rows and (record.target, record.batch) == (target, batch):
            found[row] = record
    return found


def memory_table(records: Sequence[RowFigures], *, title: str) -> Table:
    """The table for the terminal."""
    columns = {
        "method": [record.method for record in records],
        "auxiliary": [record.auxiliary or "" for record in records],
        "context": [record.context or "" for record in records],
        "K": [str(record.modules) for record in records],
        "peak": [_mib(record.peak_bytes) for record in records],
        "ratio": [f"{record.ratio:.3f}" for record in records],
        "to kd": ["" if record.kd_ratio is None else f"{record.kd_ratio:.3f}" for record in records],
        "floor": [_mib(record.floor_bytes) for record in records],
        "state": [_mib(record.state_bytes) for record in records],
        "carried": [_mib(record.carried_bytes) for record in records],
        "temporary": [_mib(record.temp_bytes) for record in records],
        "FLOPs ratio": [f"{record.flops_ratio:.2f}" for record in records],
        "deployed": [f"{record.deployed_multiply_adds / 1e6:,.1f}" for record in records],
        "executables": [str(record.executables) for record in records],
        "compile s": [f"{record.compile_seconds:.1f}" for record in records],
        "saved": [_mib(record.saved_bytes) for record in records],
        "saved ratio": [f"{record.saved_ratio:.3f}" for record in records],
        "measured": ["" if record.measured_bytes is None else _mib(record.measured_bytes) for record in records],
        "measured / peak": [
            "" if record.measured_bytes is None else f"{record.measured_bytes / record.peak_bytes:.2f}"
            for record in records
        ],
    }
    optional = ("auxiliary", "to kd", "measured", "measured / peak")
    columns = {heading: cells for heading, cells in columns.items() if heading not in optional or any(cells)}
    caption = (
        "MiB of one device; ratios are relative to end to end, `to kd` to plain KD; `deployed`: million multiply-adds "
        "of the deployed network for one image"
    )
    return terminal_table(columns, title=title, left=("method", "auxiliary", "context"), caption=caption)


_STYLES: dict[str, dict[str, Any]] = {
    CONTSUP: {"linestyle": "-", "marker": "o"},
    LOCAL_REMATERIALIZED: {"linestyle": ":", "marker": "^"},
    DECODER: {"linestyle": "--", "marker": "s", "fillstyle": "none"},
    JOINED: {"linestyle": "-.", "marker": "^", "color": "0.4"},
    SCANNED: {"linestyle": "-.", "marker": "v", "color": "0.4"},
    NAIVE: {"linestyle": ":", "marker": "x", "color": "0.4"},
    **{name: {"linestyle": "-.", "marker": marker} for name, marker in zip(PAIRS, "<>", strict=True)},
}
_MARKERS = ("D", "P", "X", "*", "p", "h")
_LEVELS = {END_TO_END: "-", REMATERIALIZED: "--"}


def draw(records: Sequence[RowFigures], *, title: str) -> Figure:
    """A plot of peak memory over the number of modules.

    Each method and context has a line. End-to-end training and distillation of the whole student have horizontal lines.
    Local distillation has a point.
    """
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    contexts = list(
        dict.fromkeys(record.context for record in records if record.method in (CONTSUP, LOCAL_REMATERIALIZED, DECODER))
    )
    lines: dict[tuple[str, str, str | None], list[RowFigures]] = {}
    counts = {record.modules for record in records if record.context is not None or record.modules > 1}
    whole = (*_LEVELS, *PAIRS)
    taught = [record.method for record in records if record.context is None and record.method not in whole]
    for record in records:
        peak, name = record.peak_bytes / MIB, record.method
        if record.context is None and name in _LEVELS:
            axes.axhline(peak, color="black", linestyle=_LEVELS[name], label=name)
        elif record.context is None and name not in PAIRS:
            color = f"C{(len(contexts) + taught.index(name)) % 10}"
            if record.modules > 1:
                axes.plot([record.modules], [peak], color=color, linestyle="", marker="D", label=name)
            else:
                axes.axhline(peak, color=color, linestyle="-.", label=name)
        else:
            lines.setdefault((record.method, record.context or "", record.auxiliary), []).append(record)
    named = [auxiliary for _, _, auxiliary in lines if auxiliary is not None]
    for (method, context, auxiliary), points in lines.items():
        points.sort(key=lambda record: record.modules)
        style = {"color": f"C{contexts.index(context)}" if context in contexts else "0.4", **_STYLES[method]}
        if auxiliary is not None:
            style |= {"marker": _MARKERS[named.index(auxiliary) % len(_MARKERS)], "linestyle": (0, (4, 1, 1, 1))}
        axes.plot(
            [record.modules for record in points],
            [record.peak_bytes / MIB for record in points],
            label=f"{auxiliary or method} {context}".strip(),
            **style,
        )
    if counts:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(counts), [str(count) for count in sorted(counts)])
        axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("modules K")
    axes.set_ylabel("peak memory of a step, MiB")
    axes.set_title(title, fontsize="medium", parse_math=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", frameon=False)
    return figure


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
