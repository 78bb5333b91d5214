"""Times the rows of the speed table and prints it."""

import json
import selectors
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.command_line import USAGE_STATUS, fail
from experiments.ending import ENDING
from experiments.folders.folder_lock import lock_folder
from experiments.from_config.experiment import build
from experiments.speed.peaks import peak_flops
from experiments.speed.picture import draw
from experiments.speed.predicted import predict_all
from experiments.speed.processes import RowProcess
from experiments.speed.rows import PYTORCH, SpeedRow, configured
from experiments.tables import say, terminal_table
from kd_local.files import replace_text, replacing
from kd_local.memory import target
from kd_local.sizes import MIB

LINES, PICTURE = "speed.jsonl", "speed.png"


@dataclass(frozen=True)
class Timing:
    """How the rows are timed.

    Attributes:
        steps: steps of a round.
        rounds: number of timed rounds of each row.
        processes: number of rows that compile at once.
        seconds: time limit of the compilation.
        profile: folder for a trace of each row's last round; None: no trace.
    """

    steps: int
    rounds: int
    processes: int
    seconds: float
    profile: Path | None


def run(config: ConfigDict, rows: Sequence[SpeedRow], timing: Timing, workdir: Path) -> None:
    """Times the rows in processes of their own, and ends the program with an error if one fails."""
    try:
        _check(config, rows)
        ENDING.at_end(lock_folder(workdir).release)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()
    console = Console()
    request = {"config": config.to_dict(), "steps": timing.steps}
    ready = compiled_rows(rows, request, timing, workdir, console)
    for number in range(timing.rounds):
        for each in ready:
            last = number == timing.rounds - 1
            each.ask(
                {"profile": str(timing.profile / str(each.row).replace(" ", "-")) if timing.profile and last else None}
            )
            if (answer := each.answer()) is None:
                say(console, f"{each.row}: {each.error()}")
                ready = [other for other in ready if other is not each]
            else:
                each.rounds.append(answer)
    results = [figures(each, timing.steps) for each in ready]
    for each in ready:
        each.process.terminate()
    common = {"network": config.network.name, "batch": config.batch_size, "steps": timing.steps, "jax": jax.__version__}
    replace_text(workdir / LINES, "".join(json.dumps({**one, **common}) + "\n" for one in results))
    title = f"{config.network.name}, batch {config.batch_size}"
    with replacing(workdir / PICTURE) as file:
        draw(results, title=title).savefig(file, dpi=120, format="png")
    console.print(table(results, title, config.batch_size))
    if len(results) < len(rows):
        fail(f"{len(rows) - len(results)} of {len(rows)} rows failed or were late, see above", 1)


def predict(config: ConfigDict, rows: Sequence[SpeedRow], name: str, steps: int, workdir: Path) -> None:
    """Predicts the rows for a TPU target, see `experiments.speed.predicted`."""
    # If libtpu is installed, JAX would look for a TPU.
    jax.config.update("jax_platforms", "cpu")
    try:
        on = target(name)
        _check(config, rows)
        ENDING.at_end(lock_folder(workdir).release)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()
    predict_all(config, rows, on, steps, workdir, Console())


def _check(config: ConfigDict, rows: Sequence[SpeedRow]) -> None:
    """Builds all rows, so that errors are raised before any compilation."""
    for row in {row.work: row for row in rows}.values():
        build(configured(row, config), fresh_teachers=True)


def compiled_rows(
    rows: Sequence[SpeedRow], request: dict[str, Any], timing: Timing, workdir: Path, console: Console
) -> list[RowProcess]:
    """The processes of the rows after compilation. Rows that fail or exceed the limit are reported and left out."""
    waiting, ready, running = list(rows), [], selectors.DefaultSelector()
    deadline = time.perf_counter() + timing.seconds
    count = 0
    while waiting or count:
        while waiting and count < timing.processes:
            row = waiting.pop(0)
            log = workdir / (str(row).replace(" ", "-") + ".log")
            each = RowProcess(row, {**request, "row": asdict(row)}, log, 0.75 / len(rows))
            running.register(each.process.stdout, selectors.EVENT_READ, each)  # type: ignore[arg-type]
            count += 1
        found = running.select(max(0.0, deadline - time.perf_counter()))
        if not found:
            late = [key.data for key in running.get_map().values()]
            for each in late:
                each.process.kill()
            names = ", ".join(str(row) for row in [*(each.row for each in late), *waiting])
            say(console, f"not compiled within {timing.seconds:.0f} s: {names}")
            break
        for key, _ in found:
            each = key.data
            running.unregister(key.fileobj)
            count -= 1
            known = each.answer()
            if known is None:
                say(console, f"{each.row}: {each.error()}")
                continue
            each.known = {**known, "start_seconds": time.perf_counter() - each.started}
            ready.append(each)
            say(console, f"{each.row}: compiled in {known['compile_seconds']:.1f} s")
    return sorted(ready, key=lambda each: rows.index(each.row))


def figures(each: RowProcess, steps: int) -> dict[str, Any]:
    """The figures of a row. Times are seconds per step; `flops` are floating-point operations a second."""
    seconds = [one["seconds"] / steps for one in each.rounds]
    median, work = statistics.median(seconds), each.known["multiply_adds"]
    flops = 2 * work / median if work else None
    peak = peak_flops(each.known["device"], each.row.dtype)
    return {
        **asdict(each.row),
        **each.known,
        "flops": flops,
        "of_peak": flops / peak if flops and peak else None,
        "seconds": median,
        "least": min(seconds),
        "most": max(seconds),
        "rounds": len(seconds),
        "host_seconds": statistics.median(one["host_seconds"] / steps for one in each.rounds),
        "measured_bytes": each.rounds[-1]["measured_bytes"],
    }


def table(results: Sequence[dict[str, Any]], title: str, batch: int) -> Table:
    """The table of all rows. Ratios are ratios of medians."""

    def ratio(one: dict[str, Any], **other: Any) -> str:
        wanted = [r["seconds"] for r in results if all(r[name] == value for name, value in other.items())]
        return f"{one['seconds'] / min(wanted):.2f}" if wanted else ""

    def mib(one: dict[str, Any], name: str) -> str:
        return "" if one[name] is None else f"{one[name] / MIB:.1f}"

    same = ("method", "context", "modules", "dtype")
    columns = {
        "row": [" ".join(filter(None, [one["method"], one["context"]])) for one in results],
        "K": [str(one["modules"]) for one in results],
        "form": [one["form"] if one["framework"] == "jax" else f"{PYTORCH} {one['form']}" for one in results],
        "dtype": [one["dtype"] for one in results],
        "ms": [f"{one['seconds'] * 1e3:.3f}" for one in results],
        "least": [f"{one['least'] * 1e3:.3f}" for one in results],
        "most": [f"{one['most'] * 1e3:.3f}" for one in results],
        "host ms": [f"{one['host_seconds'] * 1e3:.3f}" for one in results],
        "images a second": [f"{batch / one['seconds']:,.0f}" for one in results],
        "of end to end": [
            ratio(one, method="end_to_end", form=one["form"], dtype=one["dtype"], framework=one["framework"])
            for one in results
        ],
        "of PyTorch": [ratio(one, framework=PYTORCH, **{name: one[name] for name in same}) for one in results],
        "TFLOP/s": [f"{one['flops'] / 1e12:.2f}" if one["flops"] else "" for one in results],
        "of peak": [f"{one['of_peak']:.1%}" if one["of_peak"] else "" for one in results],
        "predicted MiB": [mib(one, "predicted_bytes") for one in results],
        "measured MiB": [mib(one, "measured_bytes") for one in results],
        "compile s": [f"{one['compile_seconds']:.1f}" for one in results],
        "from cache s": ["" if one["cached_seconds"] is None else f"{one['cached_seconds']:.1f}" for one in results],
    }
    empty = [heading for heading in ("of PyTorch", "of peak", "measured MiB") if not any(columns[heading])]
    columns = {heading: cells for heading, cells in columns.items() if heading not in empty}
    caption = "of end to end: in the same form and precision; of PyTorch: of the faster layout in the same precision"
    return terminal_table(columns, title=title, left=("row", "form", "dtype"), caption=caption)
