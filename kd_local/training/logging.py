"""What a run leaves in its folder while it goes: `metrics.jsonl` with a record an epoch, `steps.jsonl` with the metrics
of single batches, and both as TensorBoard events."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from kd_local.files import read_json_lines, replace_text
from kd_local.training.loop import Course, Record

METRICS = "metrics.jsonl"
STEPS = "steps.jsonl"
EVERY = 25
"""Of the first step and of each 25th the batch's metrics are kept."""


class Log:
    """Writes a record of each epoch and of some steps; those after the step at which a run goes on come again."""

    def __init__(self, workdir: Path) -> None:
        self.epochs = workdir / METRICS
        self.steps = workdir / STEPS
        self.tensorboard = workdir / "tensorboard"
        self._writer: SummaryWriter | None = None

    def on_start(self, course: Course) -> None:
        for path in (self.epochs, self.steps):
            kept = [record for record in read_json_lines(path) if record["step"] <= course.first_step]
            replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._writer = SummaryWriter(str(self.tensorboard), purge_step=course.first_step + 1)

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        if step == 1 or step % EVERY == 0:
            self._write(self.steps, {"step": step, **{f"batch/{name}": value for name, value in metrics.items()}})

    def on_epoch(self, record: Record) -> None:
        self._write(self.epochs, record)

    def _write(self, path: Path, record: Record) -> None:
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
