"""What a run leaves in its folder while it goes: `metrics.jsonl` and TensorBoard events, a record an epoch."""

import json
import os
from pathlib import Path

from tensorboardX import SummaryWriter

from kd_local.training.loop import Course, Record

METRICS = "metrics.jsonl"


class Log:
    """Writes the record of each epoch. Records after the step at which a run goes on are dropped: they come again."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / METRICS
        self.tensorboard = workdir / "tensorboard"
        self._writer: SummaryWriter | None = None

    def on_start(self, course: Course) -> None:
        kept = [record for record in read_records(self.path) if record["step"] <= course.first_step]
        replace_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._writer = SummaryWriter(str(self.tensorboard), purge_step=course.first_step + 1)

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def on_epoch(self, record: Record) -> None:
        assert self._writer is not None, "on_start comes first"
        with self.path.open("a") as file:
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
