"""The records of a training run, and the interface of its observers.

`to_json` returns a record as one flat JSON object, a line of metrics.jsonl or steps.jsonl, with names such as
`train/module03/loss`. `from_json` reads such an object, and raises KeyError or ValueError for any other object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

ProgramMetrics = Mapping[str, Mapping[str, float]]
"""Metrics by program, such as `{"module03": {"accuracy": 0.9, "loss": 0.3}}`."""


@dataclass(frozen=True)
class TrainingPlan:
    """Steps, epochs and sizes of a run.

    Attributes:
        first_step: number of steps done before this start; 0 for a new run.
        last_step: number of steps of the whole run.
        steps_per_epoch: number of steps per epoch; the last step of an epoch may have a smaller batch.
        batch_size: images per step, over all devices.
        peak_bytes: predicted memory of a compiled step on one device; None before the step is compiled.
    """

    first_step: int
    last_step: int
    steps_per_epoch: int
    batch_size: int
    peak_bytes: int | None = field(default=None, compare=False)

    @property
    def epochs(self) -> int:
        """The number of epochs; the last epoch may be incomplete."""
        return -(-self.last_step // self.steps_per_epoch)


@dataclass(frozen=True)
class Scores:
    """Mean cross entropy and accuracy (in [0, 1]) of some logits over a split."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class SplitScores(Scores):
    """Scores of the deployed network over a split.

    Attributes:
        exits: the scores of the other classifiers by name, see `Method.exits`.
    """

    exits: Mapping[str, Scores] = field(default_factory=dict)


@dataclass(frozen=True)
class StepRecord:
    """The metrics of one batch.

    Attributes:
        step: the step, from 1.
        train: means over the batch.
    """

    step: int
    train: ProgramMetrics

    def to_json(self) -> dict[str, Any]:
        """A line of steps.jsonl."""
        return {"step": self.step, **_flat("batch", self.train)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StepRecord":
        """The record of a line of steps.jsonl."""
        return cls(_step(values), _nested("batch", values))


@dataclass(frozen=True)
class EpochRecord:
    """The metrics, scores and times of an epoch.

    Attributes:
        epoch: number of epochs done; a fraction if the run ends within an epoch.
        step: number of steps done.
        train: means over the epoch's training images.
        test: scores on the test split.
        validation: scores on the validation split; None if there is none.
        seconds: time of training, without compilation and evaluation, and without the part of the epoch that was done
            before the run resumed; 0 in a record that was lost and made again from the state.
        images_per_second: images trained in `seconds`, per second; 0 if `seconds` is 0.
        data_wait_seconds: the part of `seconds` in which the devices were idle and waited for images.
        learning_rate: learning rate of the last step; None if `train` got no schedule.
    """

    epoch: float
    step: int
    train: ProgramMetrics
    test: SplitScores
    validation: SplitScores | None
    seconds: float
    images_per_second: float
    data_wait_seconds: float
    learning_rate: float | None = None

    @property
    def images(self) -> int:
        """The number of images trained in `seconds`."""
        return round(self.seconds * self.images_per_second)

    @property
    def splits(self) -> dict[str, SplitScores]:
        """The scores by the name of the split."""
        return {**({"validation": self.validation} if self.validation else {}), "test": self.test}

    def to_json(self) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            **_flat("train", self.train),
            **{k: v for name, scores in self.splits.items() for k, v in _flat_scores(name, scores).items()},
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "data_wait_seconds": self.data_wait_seconds,
            **({} if self.learning_rate is None else {"learning_rate": self.learning_rate}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EpochRecord":
        """The record of a line of metrics.jsonl."""
        return cls(
            _number(values, "epoch"),
            _step(values),
            _nested("train", values),
            _scores("test", values),
            _scores("validation", values) if "validation/loss" in values else None,
            _number(values, "seconds"),
            _number(values, "images_per_second"),
            _number(values, "data_wait_seconds"),
            None if values.get("learning_rate") is None else _number(values, "learning_rate"),
        )


@runtime_checkable
class Observer(Protocol):
    """Receives the records of a run: a progress bar, a log."""

    def on_start(self, plan: TrainingPlan) -> None:
        """Called once before the first step. If the run resumes, its checkpoint is restored already."""
        ...

    def on_step(self, record: StepRecord) -> None:
        """Called for every step, in order, once its metrics are read, which is a few steps after its dispatch."""
        ...

    def on_epoch(self, record: EpochRecord) -> None:
        """Called at the end of every epoch and of the run, after all of its steps and the evaluation."""
        ...


def _flat_scores(split: str, scores: SplitScores) -> dict[str, float]:
    """`test/loss` of the deployed network, `test/module03/loss` of an exit."""
    named = {split: scores, **{f"{split}/{name}": own for name, own in scores.exits.items()}}
    return {
        f"{name}/{metric}": value
        for name, own in named.items()
        for metric, value in (("loss", own.loss), ("accuracy", own.accuracy))
    }


def _scores(split: str, values: Mapping[str, Any]) -> SplitScores:
    exits = {name: Scores(metrics["loss"], metrics["accuracy"]) for name, metrics in _nested(split, values).items()}
    return SplitScores(_number(values, f"{split}/loss"), _number(values, f"{split}/accuracy"), exits)


def _flat(prefix: str, metrics: ProgramMetrics) -> dict[str, float]:
    return {f"{prefix}/{program}/{name}": value for program, own in metrics.items() for name, value in own.items()}


def _nested(prefix: str, values: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    metrics: dict[str, dict[str, float]] = {}
    for name in values:
        match name.split("/"):
            case [first, program, metric] if first == prefix:
                metrics.setdefault(program, {})[metric] = _number(values, name)
    return metrics


def _step(values: Mapping[str, Any]) -> int:
    step = values["step"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise ValueError(f"'step' is {step!r}, expected a whole number from 1")
    return step


def _number(values: Mapping[str, Any], name: str) -> Any:
    value = values[name]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name!r} is {value!r}, expected a number")
    return value
