"""The results of the runs of a sweep: from their folders or, where a folder was removed, from their records."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.folders import workdirs
from experiments.from_config.facts import facts_of_files
from experiments.sweep.records import RUNS, SUMMARY, RunRecord, read_records
from experiments.sweep.rows import Rows, Run
from kd_local.files import DamagedFileError, read_json
from kd_local.training.logging import read_epochs

Summaries = dict[Run, Mapping[str, Any] | None]
"""The summary of each run; None for a run that is not done."""


def check(folder: Path, config: ConfigDict, record: RunRecord | None = None) -> None:
    """Checks that a run is new, or that what its folder or its record has is of the same config, images and teachers.

    Raises:
        ValueError: it is another run; the message names the differences.
    """
    if (folder / workdirs.CONFIG).exists():
        workdirs.check(folder, config, facts_of_files(config))
    elif record is not None and (found := record.differences(config)).refused:
        lines = "".join(f"  {line}\n" for line in found.refused)
        raise ValueError(f"{folder.parent / RUNS} has another run of {record.run}:\n{lines}use another --workdir")


def finished(folder: Path, config: ConfigDict) -> dict[str, Any] | None:
    """The summary of a run that has exactly the epochs or steps of the config; otherwise None.

    The result is also None if the files of images or teachers have changed. The training program then compares their
    content.
    """
    if not workdirs.belongs(folder, config, facts_of_files(config)):
        return None
    try:
        summary = read_json(folder / workdirs.SUMMARY, SUMMARY, way_out="the same command makes it again")
        epochs = read_epochs(folder)
    except (OSError, DamagedFileError):
        return None
    if epochs and (epochs[-1].step, epochs[-1].test.accuracy) != (summary["steps"], summary["test_accuracy"]):
        return None  # the training program makes the summary and the records agree
    return summary if _complete(summary, config) else None


def result(folder: Path, config: ConfigDict, record: RunRecord | None = None) -> Mapping[str, Any] | None:
    """The summary of a run that is done, from its folder or, where there is none, from its record; otherwise None."""
    if record is None or (folder / workdirs.CONFIG).exists():
        return finished(folder, config)
    found = record.differences(config)
    same = not found.refused and not found.undecided
    return record.summary if same and _complete(record.summary, config) else None


def collect(rows: Rows, runs: Iterable[Run], workdir: Path) -> Summaries:
    """The summaries of these runs and of other runs of the rows in the folder; None for a run that is not done."""
    records = read_records(workdir)
    found = dict.fromkeys((*runs, *(run for run in records if run.row in rows.names)))
    for row in rows.names:
        stem = Run(row, 0).folder(workdir).name.removesuffix("0")
        seeds = [folder.name.removeprefix(stem) for folder in workdir.iterdir() if folder.name.startswith(stem)]
        found.update(dict.fromkeys(Run(row, int(seed)) for seed in seeds if seed.isdecimal()))
    ordered = sorted(found, key=lambda run: (rows.names.index(run.row), run.seed))
    summaries = {run: result(run.folder(workdir), rows.config(run), records.get(run)) for run in ordered}
    wanted = set(runs)
    return {run: summary for run, summary in summaries.items() if summary is not None or run in wanted}


def _complete(summary: Mapping[str, Any], config: ConfigDict) -> bool:
    """Whether a run has all epochs or steps of its config."""
    return bool(summary["epochs"] == config.epochs or (config.steps is not None and summary["steps"] == config.steps))
