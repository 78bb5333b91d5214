"""The files that a run writes: `metrics.jsonl` with a record per epoch, `steps.jsonl` with the metrics of single
batches, and both as TensorBoard events."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from kd_local.files import read_json_lines, replace_text
from kd_local.training.records import EpochRecord, StepRecord, TrainingPlan

METRICS = "metrics.jsonl"
STEPS = "steps.jsonl"
EVERY = 25
"""The metrics of step 1 and of each 25th step are written."""


class Log:
    """Writes a record of each epoch and of some steps.

    A run that resumes drops the records after the step from which it resumes, and writes them anew.
    """

    def __init__(self, workdir: Path) -> None:
        self.epochs = workdir / METRICS
        self.steps = workdir / STEPS
        self.tensorboard = workdir / "tensorboard"
        self._writer: SummaryWriter | None = None

    def on_start(self, plan: TrainingPlan) -> None:
        for path in (self.epochs, self.steps):
            kept = [record for record in read_json_lines(path) if record["step"] <= plan.first_step]
            replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._writer = SummaryWriter(str(self.tensorboard), purge_step=plan.first_step + 1)

    def on_step(self, record: StepRecord) -> None:
        if record.step == 1 or record.step % EVERY == 0:
            self._write(self.steps, record.to_json())

    def on_epoch(self, record: EpochRecord) -> None:
        self._write(self.epochs, record.to_json())

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        assert self._writer is not None, "on_start comes first"
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_epochs(workdir: Path) -> list[EpochRecord]:
    """The epochs of the run in a folder, of all its starts."""
    return [EpochRecord.from_json(values) for values in read_json_lines(workdir / METRICS)]


def read_steps(workdir: Path) -> list[StepRecord]:
    """The steps that the run in a folder has recorded."""
    return [StepRecord.from_json(values) for values in read_json_lines(workdir / STEPS)]
