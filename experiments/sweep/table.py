"""The table of a sweep. A line has a row's means over the seeds whose runs are done, and the cost of the row."""

import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.sweep.records import error_percent
from experiments.sweep.rows import Rows, Run
from experiments.sweep.step_time import StepTime
from experiments.tables import terminal_table, write_csv
from kd_local.files import replace_text
from kd_local.sizes import MIB

CSV, MARKDOWN, LATEX = "table.csv", "table.md", "table.tex"
_NO_TIMES: Mapping[str, StepTime] = {}


@dataclass(frozen=True)
class Line:
    """A line of the table: a row's means over its seeds. A value is None if it is not known.

    A step has the images of one update of the parameters. Its end-to-end training has the same network and images.

    Attributes:
        number: the row's number in its config file, from 1.
        state: `done`, `failed`, `not done`, or the number of seeds that are done.
        seeds: the number of seeds that are done.
        error: test error, in percent.
        deviation: sample standard deviation of the error over seeds; None for a single seed.
        peak_bytes: predicted peak memory of a step.
        peak_of_end_to_end: the same, relative to end-to-end training.
        step_seconds: seconds of a step, timed in turn with the other rows, see `experiments.sweep.step_times`.
        seconds_of_end_to_end: the same, relative to end-to-end training.
        training_multiply_adds: multiply-adds of the whole training, gradients included, that gave the error.
        multiply_adds: multiply-adds of the deployed network for one image.
        parameters_deployed, parameters_trained: numbers of parameters without and with local heads and connectors.
        train_seconds, images_per_second: of the runs, whose load may differ, without compilation and evaluation.
    """

    number: int
    row: str
    state: str
    seeds: int
    error: float | None
    deviation: float | None
    peak_bytes: int | None
    peak_of_end_to_end: float | None
    step_seconds: float | None
    seconds_of_end_to_end: float | None
    training_multiply_adds: int | None
    multiply_adds: int | None
    parameters_deployed: int | None
    parameters_trained: int | None
    train_seconds: float | None
    images_per_second: float | None


def tabulate(
    rows: Rows,
    summaries: Mapping[Run, Mapping[str, Any] | None],
    failed: Collection[Run] = (),
    times: Mapping[str, StepTime] = _NO_TIMES,
) -> tuple[Line, ...]:
    """A line for each row that has runs, in the order of the config file.

    Args:
        rows: all rows of the config file.
        summaries: the summary of each run; None for a run that is not done.
        failed: the runs that failed.
        times: the time of a step, by row.
    """
    lines = []
    for number, row in enumerate(rows.names, start=1):
        runs = [run for run in summaries if run.row == row]
        if not runs:
            continue
        done = [summary for run in runs if (summary := summaries[run]) is not None]
        errors, time = [error_percent(summary) for summary in done], times.get(row)
        first = done[0] if done else {}
        lines.append(
            Line(
                number=number,
                row=row,
                state=_state(runs, len(done), failed),
                seeds=len(done),
                error=statistics.mean(errors) if done else None,
                deviation=statistics.stdev(errors) if len(done) > 1 else None,
                peak_bytes=first.get("peak_bytes"),
                peak_of_end_to_end=first.get("peak_of_end_to_end") if time is None else time.peak_of_end_to_end,
                step_seconds=None if time is None else time.seconds,
                seconds_of_end_to_end=None if time is None else time.of_end_to_end,
                training_multiply_adds=_of_training(first),
                multiply_adds=first.get("multiply_adds"),
                parameters_deployed=first.get("parameters_deployed"),
                parameters_trained=first.get("parameters_trained"),
                train_seconds=_mean(done, "train_seconds"),
                images_per_second=_mean(done, "images_per_second"),
            )
        )
    return tuple(lines)


def write_tables(lines: Sequence[Line], workdir: Path, *, title: str, command: str) -> None:
    """Writes the table as CSV, with all values, and as Markdown and LaTeX, with the command of the sweep."""
    write_csv(workdir / CSV, list(Line.__dataclass_fields__), map(asdict, lines))
    replace_text(workdir / MARKDOWN, f"# {title}\n\n    {command}\n\n{markdown(lines)}\n")
    replace_text(workdir / LATEX, latex(lines, command=command))


def markdown(lines: Sequence[Line]) -> str:
    """The table in Markdown."""
    cells = [list(_HEADINGS), ["---", "---", "---", *["--:"] * (len(_HEADINGS) - 3)], *map(_cells, lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def latex(lines: Sequence[Line], *, command: str) -> str:
    """The table for LaTeX with the package booktabs, without the columns of states and numbers of rows."""
    left = ("row",)
    shown = [i for i, heading in enumerate(_HEADINGS) if heading not in ("", "state")]
    rows = [" & ".join(_escaped(cells[i]) for i in shown) + r" \\" for cells in map(_cells, lines)]
    head = " & ".join(_escaped(_HEADINGS[i]) for i in shown) + r" \\"
    columns = "".join("l" if _HEADINGS[i] in left else "r" for i in shown)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([f"% {command}", *body]) + "\n"


def sweep_table(lines: Sequence[Line], *, title: str) -> Table:
    """The table for the terminal."""
    columns = zip(*map(_cells, lines), strict=True) if lines else [()] * len(_HEADINGS)
    return terminal_table(
        dict(zip(_HEADINGS, columns, strict=True)), title=title, left=("row", "state"), long=("row", "state")
    )


_HEADINGS = (
    "", "row", "state", "seeds", "test error %", "peak MiB", "peak of end to end", "ms a step",
    "time of end to end", "training, 10^12", "deployed, 10^6", "parameters",
)  # fmt: skip
"""Training and deployed network in multiply-adds."""


def _cells(line: Line) -> list[str]:
    def cell(value: float | None, form: str, *, scale: float = 1.0, before: str = "") -> str:
        return "" if value is None else before + format(value / scale, form)

    return [
        str(line.number),
        line.row,
        line.state,
        str(line.seeds),
        cell(line.error, ".2f") + cell(line.deviation, ".2f", before=" ± "),
        cell(line.peak_bytes, ",.1f", scale=MIB),
        cell(line.peak_of_end_to_end, ".3f"),
        cell(line.step_seconds, ",.1f", scale=1e-3),
        cell(line.seconds_of_end_to_end, ".2f"),
        cell(line.training_multiply_adds, ".3g" if (line.training_multiply_adds or 0) < 1e14 else ",.0f", scale=1e12),
        cell(line.multiply_adds, ",.2f", scale=1e6),
        cell(line.parameters_deployed, ",.0f"),
    ]


def _escaped(text: str) -> str:
    """A text with LaTeX's special characters escaped."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    return text.replace("±", r"$\pm$").replace("10^12", "$10^{12}$").replace("10^6", "$10^6$")


def _of_training(summary: Mapping[str, Any]) -> int | None:
    """The multiply-adds of a whole training; None for runs of versions that did not record them."""
    each, images = summary.get("training_multiply_adds"), summary.get("images")
    return None if each is None or images is None else each * images


def _state(runs: Sequence[Run], done: int, failed: Collection[Run]) -> str:
    if done == len(runs):
        return "done"
    if any(run in failed for run in runs):
        return "failed"
    return f"{done} of {len(runs)} seeds" if done else "not done"


def _mean(summaries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of the summaries that have the value."""
    values = [summary[name] for summary in summaries if summary[name] is not None]
    return statistics.mean(values) if values else None
