"""Optimizers by name. All are those of optax."""

from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp
import optax

from kd_local.choices.optimization import MOMENTUM, RANGES, check_optimizer
from kd_local.precision import at_least_float32
from kd_local.training.dot import dot as dot_of_two
from kd_local.training.schedules import updates_per_epoch
from kd_local.two_gradients import TwoGradientOptimizer, sum_of_updates


@overload
def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float | None = None,
    nesterov: bool | None = None,
    weight_decay: float = 1e-4,
    accumulate: int = 1,
    batches_per_epoch: int | None = None,
    dot: None = None,
) -> optax.GradientTransformation: ...
@overload
def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float | None = None,
    nesterov: bool | None = None,
    weight_decay: float = 1e-4,
    accumulate: int = 1,
    batches_per_epoch: int | None = None,
    dot: float,
) -> TwoGradientOptimizer: ...
def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float | None = None,
    nesterov: bool | None = None,
    weight_decay: float = 1e-4,
    accumulate: int = 1,
    batches_per_epoch: int | None = None,
    dot: float | None = None,
) -> optax.GradientTransformation | TwoGradientOptimizer:
    """The optimizer with this name.

    Args:
        name: `sgd`, `adam`, `adamw`, `lamb` or `lion`.
        schedule: the learning rate as a function of the number of earlier updates.
        momentum: momentum of sgd, in [0, 1); None: 0.9.
        nesterov: Nesterov momentum of sgd; None: True if the momentum is above 0.
        weight_decay: weight decay of every parameter; part of the gradient for sgd and adam (L2, as in PyTorch),
            decoupled for the others.
        accumulate: the number of batches whose gradients are averaged, with equal weight, for one update. If a run ends
            within these batches, there is no update for them.
        batches_per_epoch: if given, an update never has batches of two epochs: the last update of an epoch uses the
            remaining batches.
        dot: delta of `kd_local.training.dot`, for sgd with two gradients, of the labels and of a teacher, as
            `Distillation` computes them; 0.075 is usual. None: one gradient.

    Raises:
        ValueError: any of these is unknown or out of range, or would be ignored.
    """
    check_optimizer(name, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, dot=dot)
    momentum = MOMENTUM if momentum is None else momentum
    if not callable(schedule):
        RANGES["rate"].check("the learning rate", schedule)
    nesterov = nesterov is not False and momentum > 0
    optimizer = _named(name, schedule, momentum, nesterov, weight_decay)
    RANGES["accumulate"].check("accumulate", accumulate)
    accumulated = _accumulation(accumulate, batches_per_epoch)
    if dot is None:
        return accumulated(optimizer)
    pairs = dot_of_two(schedule, delta=dot, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    return sum_of_updates(accumulated(pairs), accumulated(optimizer))


def _accumulation(
    accumulate: int, batches_per_epoch: int | None
) -> Callable[[optax.GradientTransformation], optax.GradientTransformation]:
    if accumulate == 1:
        return lambda optimizer: optimizer
    updates, left = 1, accumulate
    if batches_per_epoch is not None:
        updates = updates_per_epoch(batches_per_epoch, accumulate)
        left = batches_per_epoch - (updates - 1) * accumulate
    batches = lambda update: jnp.where((update + 1) % updates == 0, left, accumulate)
    return lambda optimizer: _accumulated(optimizer, batches)


def _named(
    name: str, schedule: optax.Schedule, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    if name in ("adamw", "lamb", "lion"):
        return getattr(optax, name)(schedule, weight_decay=weight_decay)
    base = optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov) if name == "sgd" else optax.adam(schedule)
    return optax.chain(optax.add_decayed_weights(weight_decay), base) if weight_decay else base


def _accumulated(optimizer: optax.GradientTransformation, batches: Any) -> optax.GradientTransformation:
    """Optax's MultiSteps, with sums in the gradients' dtype (usually float32), under standard dtype promotion."""

    def steps(tree: Any) -> optax.MultiSteps:
        wide = at_least_float32(jnp.result_type(*jax.tree.leaves(tree)))
        options = {} if wide == jnp.float32 else {"accumulator_dtype": wide}
        return optax.MultiSteps(optimizer, batches, **options)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return steps(gradients).update(gradients, state, params)

    return optax.GradientTransformation(lambda params: steps(params).init(params), update)
