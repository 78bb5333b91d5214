"""The results of the runs of a sweep, from their folders."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.folders import workdirs
from experiments.folders.starts import read_starts
from experiments.from_config.facts import facts_of_files
from experiments.sweep.rows import Rows, Run
from kd_local.files import DamagedFileError, read_json, replace_text
from kd_local.training.logging import read_epochs

RUNS = "runs.jsonl"
_SUMMARY = {
    "method": str, "network": str, "dataset": str, "modules": int | None, "epochs": float, "steps": int,
    "test_accuracy": float, "train_seconds": float, "images_per_second": float | None, "parameters_trained": int,
    "parameters_deployed": int, "multiply_adds": int,
}  # fmt: skip
"""The values of a run's summary that a sweep reads."""


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


def write_runs(rows: Rows, summaries: Mapping[Run, dict[str, Any] | None], workdir: Path) -> None:
    """Writes a line for each run that is done: its error and config, the command that repeats it, and its starts."""
    lines = [
        {
            "row": run.row,
            "seed": run.seed,
            "test_error": error_percent(summary),
            "command": shlex.join(rows.command(run, workdir)),
            "config": rows.config(run).to_dict(),
            "starts": read_starts(run.folder(workdir)),
        }
        for run, summary in summaries.items()
        if summary is not None
    ]
    replace_text(workdir / RUNS, "".join(json.dumps(line) + "\n" for line in lines))


def error_percent(summary: Mapping[str, Any]) -> float:
    """The test error in percent."""
    # Accuracies are float32 quotients of whole numbers.
    return round(100 * (1 - float(summary["test_accuracy"])), 6)
