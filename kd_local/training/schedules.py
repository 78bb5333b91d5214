"""Learning rates as functions of the number of earlier updates. If gradients are accumulated, there are fewer updates
than batches.

Reference: `contsup` is the schedule of the ContSup authors' code (Yu et al., arXiv 2312.07636); the others are optax's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from kd_local.errors import unknown
from kd_local.ranges import Number, Numbers, Range, check_arguments

RANGES: Mapping[str, Range] = {
    "rate": Number(1e-12, 1e4, example=0.1),
    "epochs": Number(1, 100_000, whole=True),
    "warmup_epochs": Number(0, 100_000, whole=True, note="0 is no warm-up"),
    "warmup_rate": Number(0, 1e4, example=0.01),
    "milestones": Numbers(Number(1, 100_000, whole=True), rising=True, example=(60, 80)),
    "steps_per_epoch": Number(1, 2**31 - 1, whole=True),
    "decay": Number(1e-6, 1, example=0.1),
    "accumulate": Number(1, 1_000_000, whole=True, note="1 is an update for every batch"),
}
"""Of the arguments of `make_schedule` and of `updates_per_epoch`."""
SCHEDULES: tuple[str, ...] = ("contsup", "cosine", "constant", "linear", "piecewise")
WARMUP_RATE = 0.01
"""The default learning rate at the start of a warm-up."""
DECAY = 0.1
"""The default factor of piecewise at each milestone."""


def contsup(
    rate: float, *, epochs: int, steps_per_epoch: int, warmup_epochs: int = 10, warmup_rate: float = 0.01
) -> optax.Schedule:
    """Cosine decay to zero, interpolated with a linear warm-up; constant within an epoch.

    In epoch e = 1..epochs the rate is base = rate/2 (1 + cos(pi e / epochs)); in the first w warm-up epochs it is
    base (e-1)/w + warmup_rate (w+1-e)/w. After the last epoch it stays at zero.

    Raises:
        ValueError: a number is out of range.

    >>> schedule = contsup(0.8, epochs=160, steps_per_epoch=49)
    >>> [round(float(schedule(49 * (e - 1))), 5) for e in (1, 5, 11, 80, 160)]
    [0.01, 0.32523, 0.79071, 0.4, 0.0]
    """
    RANGES["rate"].check("the learning rate", rate)
    check_arguments(
        RANGES,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=warmup_epochs,
        warmup_rate=warmup_rate,
    )

    def schedule(step: Any) -> Any:
        epoch = jnp.minimum(jnp.asarray(step, jnp.int32) // steps_per_epoch + 1, epochs).astype(jnp.float32)
        base = 0.5 * rate * (1 + jnp.cos(jnp.pi * epoch / epochs))
        if warmup_epochs == 0:
            return base
        warm = (base * (epoch - 1) + warmup_rate * (warmup_epochs + 1 - epoch)) / warmup_epochs
        return jnp.where(epoch <= warmup_epochs, warm, base)

    return schedule


def updates_per_epoch(batches_per_epoch: int, accumulate: int) -> int:
    """The number of updates in an epoch, one after each `accumulate` batches and one after the remaining batches.

    >>> updates_per_epoch(7, 3)
    3

    Raises:
        ValueError: see `check_accumulate`.
    """
    check_accumulate(accumulate, batches_per_epoch)
    return -(-batches_per_epoch // accumulate)


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


def by_batches(schedule: optax.Schedule, *, batches_per_epoch: int, accumulate: int) -> optax.Schedule:
    """A schedule by updates as a schedule by batches: the rate of the update that a batch belongs to."""
    updates = updates_per_epoch(batches_per_epoch, accumulate)

    def of_batch(batch: Any) -> Any:
        return schedule(batch // batches_per_epoch * updates + batch % batches_per_epoch // accumulate)

    return schedule if accumulate == 1 else of_batch


def make_schedule(
    name: str,
    rate: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    warmup_rate: float | None = None,
    milestones: Sequence[int] = (),
    decay: float | None = None,
) -> optax.Schedule:
    """The schedule with this name.

    Args:
        name: `contsup`; or, after a linear warm-up from `warmup_rate`, `cosine` (by step, to zero), `constant`,
            `linear` (by step, to zero) or `piecewise` (multiplied by `decay` at each of `milestones`).
        rate: the peak.
        epochs: number of epochs of the whole run.
        steps_per_epoch: number of updates in an epoch, see `updates_per_epoch`.
        warmup_epochs: number of epochs of the warm-up, 0 for none. A run with fewer epochs ends within the warm-up.
        warmup_rate: the learning rate at the start of the warm-up; None: 0.01.
        milestones: for piecewise: epochs in increasing order.
        decay: for piecewise: factor in (0, 1]; None: 0.1.

    Raises:
        ValueError: an argument is unknown or out of range, or would be ignored.
    """
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    RANGES["rate"].check("the learning rate", rate)
    check_arguments(RANGES, epochs=epochs, steps_per_epoch=steps_per_epoch, warmup_epochs=warmup_epochs)
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
    warmup_rate = WARMUP_RATE if warmup_rate is None else warmup_rate
    RANGES["warmup_rate"].check("warmup_rate", warmup_rate)
    if name == "contsup":
        if epochs == 1 and (warmup_epochs == 0 or warmup_rate == 0):
            raise ValueError(
                "epochs is 1, and schedule 'contsup' has rate 0 in its last epoch, so nothing would be trained: use 2 "
                "epochs or more, or schedule cosine, linear or constant"
            )
        return contsup(
            rate,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            warmup_epochs=warmup_epochs,
            warmup_rate=warmup_rate,
        )
    warmup_steps = warmup_epochs * steps_per_epoch
    rest = max(1, epochs * steps_per_epoch - warmup_steps)
    if name == "cosine":
        after = optax.cosine_decay_schedule(rate, rest)
    elif name == "linear":
        after = optax.linear_schedule(rate, 0.0, rest)
    elif name == "piecewise":
        after = _piecewise(rate, milestones, DECAY if decay is None else decay, warmup_epochs, epochs, steps_per_epoch)
    else:
        after = optax.constant_schedule(rate)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(warmup_rate, rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def _piecewise(
    rate: float, milestones: Sequence[int], decay: float, first: int, epochs: int, steps_per_epoch: int
) -> Callable[[Any], Any]:
    RANGES["milestones"].check("milestones", tuple(milestones))
    if not milestones or not first < milestones[0] or not milestones[-1] < epochs:
        raise ValueError(
            f"milestones are {tuple(milestones)}: a piecewise schedule of {epochs} epochs needs increasing epochs "
            f"after the warm-up ({first} epochs) and before the last one, such as {(epochs // 2, epochs * 3 // 4)}"
        )
    RANGES["decay"].check("decay", decay)
    return optax.piecewise_constant_schedule(rate, {(epoch - first) * steps_per_epoch: decay for epoch in milestones})
