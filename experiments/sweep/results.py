"""The table of a sweep. A line has a row's means over the seeds whose runs are done."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.table import Table

from experiments.folders import workdirs
from experiments.from_config.facts import facts_of_files
from experiments.sweep.rows import Rows, Run
from experiments.tables import terminal_table
from kd_local.files import DamagedFileError, read_json, replace_text
from kd_local.training.logging import read_epochs

_SUMMARY = {
    "method": str, "network": str, "dataset": str, "modules": int | None, "epochs": float, "steps": int,
    "test_accuracy": float, "train_seconds": float, "images_per_second": float | None, "parameters_trained": int,
    "parameters_deployed": int, "multiply_adds": int,
}  # fmt: skip
"""The values of a run's summary that a sweep reads."""


@dataclass(frozen=True)
class Line:
    """A line of the table: a row's means over its seeds, or None if no run is done.

    Attributes:
        number: the row's number in its config file, from 1.
        state: `done`, `failed`, `not done`, or the number of seeds that are done.
        seeds: the number of seeds that are done.
        error: test error, in percent.
        deviation: sample standard deviation of the error over seeds; None for a single seed.
        train_seconds: training time without compilation and evaluation.
        parameters_trained, parameters_deployed: numbers of parameters with and without local heads and connectors.
        multiply_adds: multiply-adds of the deployed network for one image.
        training_multiply_adds: multiply-adds of a step for one image, gradients included; None for runs of versions
            that did not record them.
        peak_of_end_to_end: predicted peak memory of a step, relative to end-to-end training; None if not recorded.
    """

    number: int
    row: str
    state: str
    seeds: int
    error: float | None
    deviation: float | None
    train_seconds: float | None
    images_per_second: float | None
    parameters_trained: int | None
    parameters_deployed: int | None
    multiply_adds: int | None
    training_multiply_adds: int | None
    peak_of_end_to_end: float | None


def check(folder: Path, config: ConfigDict) -> None:
    """Checks that a run's folder is new, or has a run of the same config, images and teachers.

    Raises:
        ValueError: the folder has another run; the message names the differences.
    """
    if (folder / workdirs.CONFIG).exists():
        workdirs.check(folder, config, facts_of_files(config))


def finished(folder: Path, config: ConfigDict) -> dict[str, Any] | None:
    """The summary of a run that has exactly the epochs or steps of the config; otherwise None.

    The result is also None if the files of images or teachers have changed. The training program then compares their
    content.
    """
    if not workdirs.belongs(folder, config, facts_of_files(config)):
        return None
    try:
        summary = read_json(folder / workdirs.SUMMARY, _SUMMARY, way_out="the same command makes it again")
        records = read_epochs(folder)
    except (OSError, DamagedFileError):
        return None
    if records and (records[-1].step, records[-1].test.accuracy) != (summary["steps"], summary["test_accuracy"]):
        return None  # the training program makes the summary and the records agree
    far = summary["epochs"] == config.epochs or (config.steps is not None and summary["steps"] == config.steps)
    return summary if far else None


def collect(rows: Rows, runs: Iterable[Run], workdir: Path) -> dict[Run, dict[str, Any] | None]:
    """The summaries of these runs and of other seeds of the rows in the folder; None for a run that is not done."""
    found = dict.fromkeys(runs)
    for row in rows.names:
        stem = Run(row, 0).folder(workdir).name.removesuffix("0")
        seeds = [folder.name.removeprefix(stem) for folder in workdir.iterdir() if folder.name.startswith(stem)]
        found.update(dict.fromkeys(Run(row, seed) for seed in sorted(int(seed) for seed in seeds if seed.isdecimal())))
    ordered = sorted(found, key=lambda run: (rows.names.index(run.row), run.seed))
    summaries = {run: finished(run.folder(workdir), rows.config(run)) for run in ordered}
    wanted = set(runs)
    return {run: summary for run, summary in summaries.items() if summary is not None or run in wanted}


def tabulate(
    rows: Rows, summaries: Mapping[Run, dict[str, Any] | None], failed: Collection[Run] = ()
) -> tuple[Line, ...]:
    """A line for each row that has runs, in the order of the config file."""
    lines = []
    for number, row in enumerate(rows.names, start=1):
        runs = [run for run in summaries if run.row == row]
        done = [summary for run in runs if (summary := summaries[run]) is not None]
        errors = [error_percent(summary) for summary in done]
        if runs:
            lines.append(
                Line(
                    number=number,
                    row=row,
                    state=_state(runs, len(done), failed),
                    seeds=len(done),
                    error=statistics.mean(errors) if done else None,
                    deviation=statistics.stdev(errors) if len(done) > 1 else None,
                    train_seconds=_mean(done, "train_seconds"),
                    images_per_second=_mean(done, "images_per_second"),
                    parameters_trained=done[0]["parameters_trained"] if done else None,
                    parameters_deployed=done[0]["parameters_deployed"] if done else None,
                    multiply_adds=done[0]["multiply_adds"] if done else None,
                    training_multiply_adds=done[0].get("training_multiply_adds") if done else None,
                    peak_of_end_to_end=done[0].get("peak_of_end_to_end") if done else None,
                )
            )
    return tuple(lines)


def error_percent(summary: Mapping[str, Any]) -> float:
    """The test error in percent."""
    # Accuracies are float32 quotients of whole numbers.
    return round(100 * (1 - float(summary["test_accuracy"])), 6)


def write_markdown(lines: Sequence[Line], path: Path, *, title: str, command: str) -> None:
    """Writes the table as Markdown, with the command of the sweep."""
    cells = map(_cells, lines)
    table = [_HEADINGS, ["---", "---", "---", *["--:"] * (len(_HEADINGS) - 3)], *cells]
    text = "\n".join("| " + " | ".join(row) + " |" for row in table)
    replace_text(path, f"# {title}\n\n    {command}\n\n{text}\n")


def sweep_table(lines: Sequence[Line], *, title: str) -> Table:
    """The table for the terminal."""
    columns = zip(*map(_cells, lines), strict=True) if lines else [()] * len(_HEADINGS)
    return terminal_table(
        dict(zip(_HEADINGS, columns, strict=True)), title=title, left=("row", "state"), long=("row", "state")
    )


_HEADINGS = (
    "", "row", "state", "seeds", "test error %", "seconds", "images/s", "parameters", "deployed", "multiply-adds",
    "in training", "peak",
)  # fmt: skip


def _cells(line: Line) -> list[str]:
    def cell(value: float | None, form: str, before: str = "") -> str:
        return "" if value is None else before + format(value, form)

    return [
        str(line.number),
        line.row,
        line.state,
        str(line.seeds),
        cell(line.error, ".2f") + cell(line.deviation, ".2f", " ± "),
        cell(line.train_seconds, ",.1f"),
        cell(line.images_per_second, ",.0f"),
        cell(line.parameters_trained, ",d"),
        cell(line.parameters_deployed, ",d"),
        cell(line.multiply_adds, ",d"),
        cell(line.training_multiply_adds, ",d"),
        cell(line.peak_of_end_to_end, ".3f"),
    ]


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
