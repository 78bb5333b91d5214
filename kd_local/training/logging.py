"""What a run leaves in its folder while it goes: `metrics.jsonl` with a record an epoch, `steps.jsonl` with the metrics
of single batches, and both as TensorBoard events."""

import json
import os
from pathlib import Path

from tensorboardX import SummaryWriter

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
            kept = [record for record in read_records(path) if record["step"] <= course.first_step]
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


def read_records(path: Path) -> list[Record]:
    """The records of a metrics file; none where there is no file. A last line that was cut short does not count."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
