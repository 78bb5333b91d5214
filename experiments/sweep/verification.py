"""Trains runs of a sweep once more, and compares the records of all epochs with those of the first time.

Of a run whose folder was removed, only the result is compared: the test loss and the test error.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.ending import Ending
from experiments.folders.starts import read_starts
from experiments.folders.workdirs import CONFIG
from experiments.sweep.records import error_percent, read_records
from experiments.sweep.results import finished, result
from experiments.sweep.rows import Rows, Run
from kd_local.training.logging import read_epochs

FOLDER = "verification"
_TIMES = ("seconds", "images_per_second", "data_wait_seconds")
_SURROUNDINGS = ("versions", "device", "commit", "changed")


def verify(
    rows: Rows,
    runs: Sequence[Run],
    workdir: Path,
    *,
    say: Callable[[str], None],
    execute: Callable[[Sequence[str]], str | None],
    ending: Ending,
) -> int:
    """Trains each run in the folder `verification`, prints how it differs, and returns the number that differ.

    A run that a stopped verification left is resumed.

    Args:
        rows: all rows of the config file.
        runs: the runs to verify, which are done.
        workdir: the folder of the sweep.
        say: prints a line.
        execute: runs a command and returns its error.
        ending: of this process.
    """
    different = 0
    for run in runs:
        again = run.folder(workdir / FOLDER)
        if finished(again, rows.config(run)) is not None:
            shutil.rmtree(again)
        error = execute(rows.command(run, workdir / FOLDER, python=sys.executable))
        if ending.received is not None:
            break
        found = [error] if error is not None else list(differences(rows, run, workdir))
        different += bool(found)
        say(f"{run}: {'the same records' if not found else '; '.join(found)}")
    return different


def differences(rows: Rows, run: Run, workdir: Path) -> Iterator[str]:
    """What differs between the two trainings of a run: errors, the first record that differs, and surroundings."""
    folders = run.folder(workdir), run.folder(workdir / FOLDER)
    config, kept = rows.config(run), read_records(workdir).get(run)
    first, again = result(folders[0], config, kept), finished(folders[1], config)
    if first is None or again is None:
        yield f"not done in {folders[0 if first is None else 1]}"
        return
    records = [[_record(record.to_json()) for record in read_epochs(folder)] for folder in folders]
    if not (folders[0] / CONFIG).exists():
        records = [[{"epoch": summary["epochs"], **_scores(summary)}] for summary in (first, again)]
    if records[0] == records[1]:
        return
    yield f"test error {error_percent(first):.2f} %, again {error_percent(again):.2f} %"
    for one, other in zip(*records, strict=False):
        if one != other:
            name = next(name for name in one if one[name] != other.get(name))
            yield f"epoch {one['epoch']}: {name} {one[name]}, again {other.get(name)}"
            break
    starts = [read_starts(folder)[-1:] for folder in folders]
    if kept is not None and not starts[0]:
        starts[0] = list(kept.starts[-1:])
    for before, now in zip(*starts, strict=False):
        yield from (f"{key} {before[key]}, now {now[key]}" for key in _SURROUNDINGS if before[key] != now[key])


def _scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: summary.get(name) for name in ("test_loss", "test_accuracy")}


def _record(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _TIMES}
