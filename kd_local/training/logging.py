"""The files that a run writes: `metrics.jsonl` with a record per epoch, `steps.jsonl` with the metrics of single
batches, and both as TensorBoard events.

Each line of the files ends with a checksum, `crc32`, of the line without it. Lines of earlier versions have none.
"""

import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tensorboardX import SummaryWriter

from kd_local.files import append_json, read_json_lines, replace_text
from kd_local.training.records import EpochRecord, StepRecord, TrainingPlan

METRICS = "metrics.jsonl"
STEPS = "steps.jsonl"
EVERY = 25
"""The metrics of step 1 and of each 25th step are written."""
_CHECKSUM = "crc32"
R = TypeVar("R", EpochRecord, StepRecord)
_warn = logging.getLogger(__name__).warning


class Log:
    """Writes a record of each epoch and of some steps.

    When a run resumes, the records after the step from which it resumes are deleted and written again. Damaged lines
    are deleted too.

    Args:
        report: called with a sentence about each line that is damaged, and with one about the earlier epochs, and the
            earlier steps, that have no record.
    """

    def __init__(self, workdir: Path, *, report: Callable[[str], None] = _warn) -> None:
        self.epochs = workdir / METRICS
        self.steps = workdir / STEPS
        self.tensorboard = workdir / "tensorboard"
        self._report = report
        self._writer: SummaryWriter | None = None

    def on_start(self, plan: TrainingPlan) -> None:
        recorded = self._keep(self.epochs, EpochRecord.from_json, plan.first_step)
        self._report_lost(plan, recorded)
        self._report_lost_steps(plan, self._keep(self.steps, StepRecord.from_json, plan.first_step))
        self._writer = SummaryWriter(str(self.tensorboard), purge_step=plan.first_step + 1)

    def _keep(self, path: Path, parse: Callable[[Mapping[str, Any]], R], last: int) -> set[int]:
        """Deletes the records after a step, and damaged lines. Returns the steps of the others."""
        kept = {step: values for step, (values, _) in _read(path, parse, self._report).items() if step <= last}
        replace_text(path, "".join(json.dumps(_with_checksum(values)) + "\n" for values in kept.values()))
        return set(kept)

    def _report_lost(self, plan: TrainingPlan, recorded: set[int]) -> None:
        """Reports the epochs before the plan's first step that have no record. Their states are gone."""
        each = plan.steps_per_epoch
        lost = [step // each for step in range(each, plan.first_step, each) if step not in recorded]
        if lost:
            self._report(
                f"{self.epochs} has no record of epoch{'s' if len(lost) > 1 else ''} {_ranges(lost)}, which cannot be "
                "made again: curves, times and tables leave out what is missing"
            )

    def _report_lost_steps(self, plan: TrainingPlan, recorded: set[int]) -> None:
        """Reports how many of the steps before the plan's first step that `on_step` writes have no record."""
        written = [step for step in range(1, plan.first_step + 1) if _is_written(step)]
        lost = [step for step in written if step not in recorded]
        if lost:
            self._report(
                f"{self.steps} has no record of {len(lost)} of the {len(written)} steps that were recorded, which "
                f"cannot be made again; the first is step {lost[0]}"
            )

    def on_step(self, record: StepRecord) -> None:
        if _is_written(record.step):
            self._write(self.steps, record.to_json())

    def on_epoch(self, record: EpochRecord) -> None:
        self._write(self.epochs, record.to_json())

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        assert self._writer is not None, "on_start comes first"
        append_json(path, _with_checksum(record))
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _is_written(step: int) -> bool:
    return step == 1 or step % EVERY == 0


def read_epochs(workdir: Path) -> list[EpochRecord]:
    """The records of all epochs of the run in a folder, in order. Damaged lines are left out."""
    return [record for _, record in _read(workdir / METRICS, EpochRecord.from_json).values()]


def read_steps(workdir: Path) -> list[StepRecord]:
    """The records of the steps of the run in a folder, in order. Damaged lines are left out."""
    return [record for _, record in _read(workdir / STEPS, StepRecord.from_json).values()]


def _read(
    path: Path, parse: Callable[[Mapping[str, Any]], R], report: Callable[[str], None] = lambda text: None
) -> dict[int, tuple[dict[str, Any], R]]:
    """The JSON object and the record of each step, in order. If a step has two records, the later one is used."""

    def checked(values: dict[str, Any]) -> tuple[dict[str, Any], R]:
        checksum = values.pop(_CHECKSUM, None)
        if checksum not in (None, _checksum(values)):
            raise ValueError("checksum differs")
        return values, parse(values)

    found = {record.step: (values, record) for values, record in read_json_lines(path, checked, report)}
    return dict(sorted(found.items()))


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as text, such as `1-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, _CHECKSUM: _checksum(values)}


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values).encode()):08x}"
