"""The record of each run of a sweep that is done: runs.jsonl. It stays when the run's folder is removed.

A copy of this file in an empty folder is enough to make the sweep's table there, to add rows or seeds, and to verify a
run.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.folders import workdirs
from experiments.folders.identity import Differences, Identity, compare, options
from experiments.folders.starts import read_starts
from experiments.from_config.facts import facts_of_files
from experiments.sweep.rows import Rows, Run
from kd_local.files import check_values, from_fields, read_json_lines, replace_text

RUNS = "runs.jsonl"
SUMMARY = {
    "method": str, "network": str, "dataset": str, "modules": int | None, "epochs": float, "steps": int,
    "test_accuracy": float, "train_seconds": float, "images_per_second": float | None, "parameters_trained": int,
    "parameters_deployed": int, "multiply_adds": int,
}  # fmt: skip
"""The values of a run's summary that a sweep reads."""


@dataclass(frozen=True)
class RunRecord:
    """A line of runs.jsonl.

    Attributes:
        row, seed: which run.
        test_error: in percent.
        command: trains the run.
        config: the values in which its config differs from the default config, by key.
        facts: digests of its images and teachers, and versions, see `experiments.folders.identity`.
        summary: of the run, see `experiments.train`.
        starts: versions, device and commit of each start, see `experiments.folders.starts`.
    """

    row: str
    seed: int
    test_error: float
    command: str
    config: dict[str, Any]
    facts: dict[str, Any]
    summary: dict[str, Any]
    starts: tuple[dict[str, Any], ...]

    @property
    def run(self) -> Run:
        """The row with its seed."""
        return Run(self.row, self.seed)

    def differences(self, config: ConfigDict) -> Differences:
        """How the recorded run differs from the run of a config."""
        now = Identity(options(config), facts_of_files(config))
        return compare(Identity(self.config, self.facts), now)


def read_records(workdir: Path) -> dict[Run, RunRecord]:
    """The records in the folder of a sweep, by run; a damaged line is left out, and its run is trained again."""
    return {record.run: record for record in read_json_lines(workdir / RUNS, _parse)}


def write_records(rows: Rows, summaries: Mapping[Run, Mapping[str, Any] | None], workdir: Path) -> None:
    """Writes the records of the runs that are done. Those of other runs, and of runs without a folder, stay."""
    records = read_records(workdir)
    for run, summary in summaries.items():
        folder = run.folder(workdir)
        if summary is not None and (folder / workdirs.CONFIG).exists():
            identity = workdirs.recorded_identity(folder)
            records[run] = RunRecord(
                row=run.row,
                seed=run.seed,
                test_error=error_percent(summary),
                command=shlex.join(rows.command(run, workdir)),
                config=dict(identity.options),
                facts=dict(identity.facts),
                summary=dict(summary),
                starts=tuple(read_starts(folder)),
            )
    ordered = sorted(records.values(), key=lambda record: (_number(rows, record.row), record.seed))
    replace_text(workdir / RUNS, "".join(json.dumps(asdict(record)) + "\n" for record in ordered))


def error_percent(summary: Mapping[str, Any]) -> float:
    """The test error in percent."""
    # Accuracies are float32 quotients of whole numbers.
    return round(100 * (1 - float(summary["test_accuracy"])), 6)


def _parse(values: dict[str, Any]) -> RunRecord:
    """A record. Raises ValueError if a value that a sweep reads is missing or has another type."""
    record = from_fields(RunRecord, values)
    check_values(record.summary, SUMMARY)
    return record


def _number(rows: Rows, name: str) -> int:
    return rows.names.index(name) if name in rows.names else len(rows.names)
