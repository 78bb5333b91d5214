"""Learning rates as functions of the number of earlier updates. If gradients are accumulated, there are fewer updates
than batches.

Reference: `contsup` is the schedule of the ContSup authors' code (Yu et al., arXiv 2312.07636); the others are optax's.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from kd_local.choices.optimization import DECAY, RANGES, WARMUP_RATE, check_accumulate, check_schedule
from kd_local.ranges import check_arguments


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


def by_batches(schedule: optax.Schedule, *, batches_per_epoch: int, accumulate: int) -> optax.Schedule:
    """A schedule by updates as a schedule by batches: the rate of the update that a batch belongs to."""
    updates = updates_per_epoch(batches_per_epoch, accumulate)

    def of_batch(batch: Any) -> Any:
        return schedule(batch // batches_per_epoch * updates + batch % batches_per_epoch // accumulate)

    return schedule if accumulate == 1 else of_batch


def compressed(schedule: optax.Schedule, *, updates: int, to: int) -> optax.Schedule:
    """A schedule of `updates` updates over another number of updates: warm-up and milestones keep their share of it.

    >>> half = compressed(optax.linear_schedule(1.0, 0.0, 100), updates=100, to=50)
    >>> [float(half(update)) for update in (0, 25, 50)]
    [1.0, 0.5, 0.0]

    Args:
        schedule: by the number of earlier updates.
        updates: the number of updates that the schedule was made for.
        to: the number of updates over which it runs now; more stretches it.

    Raises:
        ValueError: a number is out of range.
    """
    check_arguments(RANGES, schedule_steps=to)
    if to == updates:
        return schedule
    return lambda update: schedule(jnp.floor(jnp.asarray(update, jnp.float32) * (updates / to)).astype(jnp.int32))


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
    check_schedule(
        name,
        rate,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        warmup_rate=warmup_rate,
        milestones=milestones,
        decay=decay,
    )
    check_arguments(RANGES, steps_per_epoch=steps_per_epoch)
    warmup_rate = WARMUP_RATE if warmup_rate is None else warmup_rate
    if name == "contsup":
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
        factor = DECAY if decay is None else decay
        steps = {(epoch - warmup_epochs) * steps_per_epoch: factor for epoch in milestones}
        after = optax.piecewise_constant_schedule(rate, steps)
    else:
        after = optax.constant_schedule(rate)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(warmup_rate, rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])
