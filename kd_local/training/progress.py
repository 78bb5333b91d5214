"""The run on the terminal: a bar that moves, or a line an epoch where nobody looks at a terminal."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from kd_local.training.loop import Course, Record


class ProgressBar:
    """Epoch, step, images per second, remaining time, the loss of every module, and accuracy."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.fields[rate]} images/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._metrics = Text(no_wrap=False)
        self._live = Live(Group(self._bar, self._metrics), console=console, refresh_per_second=4)

    def __enter__(self) -> "ProgressBar":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def on_start(self, course: Course) -> None:
        self.course = course
        self._started = time.monotonic()
        if course.first_step:
            self.console.print(f"going on from step {course.first_step} of {course.last_step}")
        self._task = self._bar.add_task("", total=course.last_step, completed=course.first_step, epoch="1", rate="...")

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        if not self.console.is_terminal or self._task is None:
            return
        course = self.course
        elapsed = time.monotonic() - self._started
        rate = (step - course.first_step) * course.batch_size / elapsed
        epochs = -(-course.last_step // course.steps_per_epoch)
        epoch = f"{(step - 1) // course.steps_per_epoch + 1}/{epochs}"
        self._bar.update(self._task, completed=step, epoch=epoch, rate=f"{rate:,.0f}")
        losses = " ".join(f"{value:.3f}" for name, value in metrics.items() if name.endswith("/loss"))
        accuracies = [value for name, value in metrics.items() if name.endswith("/accuracy")]
        accuracy = f"\naccuracy {accuracies[-1]:.3f}" if accuracies else ""
        self._metrics.plain = f"loss of each module {losses}{accuracy}"

    def on_epoch(self, record: Record) -> None:
        losses = [value for name, value in record.items() if name.startswith("train/") and name.endswith("/loss")]
        epochs = -(-self.course.last_step // self.course.steps_per_epoch)
        validation = f"  validation {record['validation/accuracy']:.4f}" if "validation/accuracy" in record else ""
        share = record["data_wait_seconds"] / record["seconds"]
        waited = f"  waited {share:.0%} of the time for images" if share >= 0.01 else ""
        self.console.print(
            f"epoch {record['epoch']:g}/{epochs}  step {record['step']}  loss {' '.join(f'{x:.3f}' for x in losses)}"
            f"{validation}  test accuracy {record['test/accuracy']:.4f}  {record['images_per_second']:,.0f} images/s"
            f"{waited}",
            soft_wrap=True,
            highlight=False,
        )
