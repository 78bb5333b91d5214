"""Optimizers by name, all of them optax's."""

import math

import optax

from kd_local.errors import unknown

OPTIMIZERS: tuple[str, ...] = ("sgd", "adam", "adamw", "lamb", "lion")


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
    """The optimizer of that name.

    Args:
        name: `sgd`, `adam`, `adamw`, `lamb` or `lion`.
        schedule: the learning rate.
        momentum: of sgd, in [0, 1).
        nesterov: of sgd.
        weight_decay: on every parameter; part of the gradient for sgd and adam (L2, as in PyTorch), decoupled for the
            others.

    Raises:
        ValueError: any of these is unknown or out of range.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}: use a number in [0, 1), such as 0.9")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay is {weight_decay}: use 0 (none) or a positive number, such as 1e-4")
    if name in ("adamw", "lamb", "lion"):
        return getattr(optax, name)(schedule, weight_decay=weight_decay)
    base = (
        optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov and momentum > 0)
        if name == "sgd"
        else optax.adam(schedule)
    )
    return optax.chain(optax.add_decayed_weights(weight_decay), base) if weight_decay else base
