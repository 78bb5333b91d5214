"""Shows a run on the terminal: a progress bar, and a line per epoch."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from kd_local.contract import Method, trained_programs
from kd_local.sizes import shown_bytes
from kd_local.training.records import EpochRecord, ProgramMetrics, StepRecord, TrainingPlan


class ProgressBar:
    """Shows epoch, step, images per second, remaining time, the loss of every program that trains, and accuracy.

    The training accuracy is that of the deployed network. It is not shown if no program computes it.
    """

    def __init__(self, console: Console, method: Method) -> None:
        self.console = console
        self._programs = trained_programs(method)
        self._deployed = method.deployed_program
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

    def on_start(self, plan: TrainingPlan) -> None:
        self.plan = plan
        self._started = time.monotonic()
        if plan.first_step:
            self.console.print(f"resuming from step {plan.first_step} of {plan.last_step}")
        if plan.peak_bytes is not None:
            self.console.print(f"peak memory of a step, as compiled: {shown_bytes(plan.peak_bytes)}", highlight=False)
        self._task = self._bar.add_task("", total=plan.last_step, completed=plan.first_step, epoch="1", rate="...")

    def on_step(self, record: StepRecord) -> None:
        if not self.console.is_terminal or self._task is None:
            return
        plan = self.plan
        elapsed = time.monotonic() - self._started
        rate = (record.step - plan.first_step) * plan.batch_size / elapsed
        epoch = f"{(record.step - 1) // plan.steps_per_epoch + 1}/{plan.epochs}"
        self._bar.update(self._task, completed=record.step, epoch=epoch, rate=f"{rate:,.0f}")
        self._metrics.plain = self.metrics_text(record.train)

    def metrics_text(self, metrics: ProgramMetrics) -> str:
        """The losses and, below them, the training accuracy of the deployed network if a program computes it."""
        accuracy = metrics.get(self._deployed or "", {}).get("accuracy")
        label = "loss of each module" if len(self._programs) > 1 else "loss"
        return f"{label} {self._losses(metrics)}" + ("" if accuracy is None else f"\naccuracy {accuracy:.3f}")

    def on_epoch(self, record: EpochRecord) -> None:
        validation = "" if record.validation is None else f"  validation {record.validation.accuracy:.4f}"
        share = record.data_wait_seconds / record.seconds if record.seconds else 0.0
        waited = f"  waited {share:.0%} of the time for images" if share >= 0.01 else ""
        loss = f"  loss {self._losses(record.train)}" if record.train else ""
        speed = f"  {record.images_per_second:,.0f} images/s{waited}" if record.seconds else "  evaluated again"
        self.console.print(
            f"epoch {record.epoch:g}/{self.plan.epochs}  step {record.step}{loss}{validation}"
            f"  test accuracy {record.test.accuracy:.4f}{speed}",
            soft_wrap=True,
            highlight=False,
        )

    def _losses(self, metrics: ProgramMetrics) -> str:
        return " ".join(f"{metrics[program]['loss']:.3f}" for program in self._programs)
