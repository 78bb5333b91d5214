"""Names, ranges, defaults and rules of optimizers and of schedules of the learning rate."""

from collections.abc import Mapping, Sequence

from kd_local.errors import unknown
from kd_local.ranges import Number, Numbers, Range, Switch

OPTIMIZERS: tuple[str, ...] = ("sgd", "adam", "adamw", "lamb", "lion")
SCHEDULES: tuple[str, ...] = ("contsup", "cosine", "constant", "linear", "piecewise")
RANGES: Mapping[str, Range] = {
    "momentum": Number(0, 1, open_high=True, example=0.9),
    "weight_decay": Number(0, 100, example=1e-4, note="0 is none"),
    "rate": Number(1e-12, 1e4, example=0.1),
    "epochs": Number(1, 100_000, whole=True),
    "warmup_epochs": Number(0, 100_000, whole=True, note="0 is no warm-up"),
    "warmup_rate": Number(0, 1e4, example=0.01),
    "milestones": Numbers(Number(1, 100_000, whole=True), rising=True, example=(60, 80)),
    "steps_per_epoch": Number(1, 2**31 - 1, whole=True),
    "schedule_steps": Number(1, 2**31 - 1, whole=True, note="None is the number of steps of all epochs"),
    "decay": Number(1e-6, 1, example=0.1),
    "dot": Number(0, 0.5, example=0.075),
    "accumulate": Number(1, 1_000_000, whole=True, note="1 is an update for every batch"),
}
"""Of the arguments of `make_optimizer`, `make_schedule` and `updates_per_epoch` in `kd_local.training`."""
MOMENTUM = 0.9
"""The default momentum of sgd."""
WARMUP_RATE = 0.01
"""The default learning rate at the start of a warm-up."""
DECAY = 0.1
"""The default factor of piecewise at each milestone."""


def check_optimizer(
    name: str,
    *,
    momentum: float | None,
    nesterov: bool | None,
    weight_decay: float,
    dot: float | None = None,
) -> None:
    """Checks the arguments of `make_optimizer`.

    Raises:
        ValueError: any of these is unknown or out of range, or would be ignored.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    if name != "sgd":
        for argument, value in {"momentum": momentum, "nesterov": nesterov}.items():
            if value:
                raise ValueError(f"{argument} is {value}, but optimizer {name!r} has none: leave it out, or use sgd")
    if momentum is not None:
        RANGES["momentum"].check("momentum", momentum)
    RANGES["weight_decay"].check("weight_decay", weight_decay)
    if nesterov is not None:
        Switch().check("nesterov", nesterov)
    if dot is not None:
        _check_dot(name, dot, MOMENTUM if momentum is None else momentum)
    if nesterov and momentum == 0:
        raise ValueError("nesterov is True, but momentum is 0: set a momentum, such as 0.9, or nesterov to False")


def _check_dot(name: str, dot: float, momentum: float) -> None:
    RANGES["dot"].check("dot", dot)
    if name != "sgd":
        raise ValueError(f"dot is {dot}, but optimizer {name!r} has no momentum to change: leave it out, or use sgd")
    if dot > momentum or momentum + dot >= 1:
        most = min(momentum, 1 - momentum)
        raise ValueError(
            f"dot is {dot} with momentum {momentum}: the momenta {momentum - dot:.4g} and {momentum + dot:.4g} must be "
            f"in [0, 1), so use less than {most:.4g}"
        )


def check_schedule(
    name: str,
    rate: float,
    *,
    epochs: int,
    warmup_epochs: int,
    warmup_rate: float | None,
    milestones: Sequence[int],
    decay: float | None,
) -> None:
    """Checks the arguments of `make_schedule`.

    Raises:
        ValueError: an argument is unknown or out of range, or would be ignored.
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    RANGES["rate"].check("the learning rate", rate)
    RANGES["epochs"].check("epochs", epochs)
    RANGES["warmup_epochs"].check("warmup_epochs", warmup_epochs)
    if warmup_rate and warmup_epochs == 0:
        raise ValueError(
            f"warmup_rate is {warmup_rate}, but warmup_epochs is 0: leave it out (or 0), or use 1 warm-up epoch or more"
        )
    if name != "piecewise":
        for argument, value in {"milestones": tuple(milestones), "decay": decay}.items():
            if value:
                raise ValueError(
                    f"{argument} is {value}, but schedule {name!r} has none: leave it out, or use piecewise"
                )
    if warmup_rate is not None:
        RANGES["warmup_rate"].check("warmup_rate", warmup_rate)
    if name == "contsup" and epochs == 1 and (warmup_epochs == 0 or warmup_rate == 0):
        raise ValueError(
            "epochs is 1, and schedule 'contsup' has rate 0 in its last epoch, so nothing would be trained: use 2 "
            "epochs or more, or schedule cosine, linear or constant"
        )
    if name == "piecewise":
        _check_milestones(tuple(milestones), warmup_epochs, epochs)
        if decay is not None:
            RANGES["decay"].check("decay", decay)


def check_accumulate(accumulate: int, batches: int) -> None:
    """Checks that the gradients of `accumulate` batches can be averaged in an epoch, or a run, of `batches` batches.

    Raises:
        ValueError: `accumulate` is less than 1 or more than `batches`.
    """
    RANGES["accumulate"].check("accumulate", accumulate)
    if accumulate > batches:
        raise ValueError(
            f"accumulate is {accumulate} for {batches} batches: use 1 (an update for every batch) to {batches}, or "
            "smaller batches"
        )


def _check_milestones(milestones: tuple[int, ...], first: int, epochs: int) -> None:
    RANGES["milestones"].check("milestones", milestones)
    if not milestones or not first < milestones[0] or not milestones[-1] < epochs:
        raise ValueError(
            f"milestones are {milestones}: a piecewise schedule of {epochs} epochs needs increasing epochs "
            f"after the warm-up ({first} epochs) and before the last one, such as {(epochs // 2, epochs * 3 // 4)}"
        )
