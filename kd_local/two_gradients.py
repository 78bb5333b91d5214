"""Optimizers that take two gradients: that of the loss of the labels, and that of a teacher's losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Aux = TypeVar("Aux")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TwoGradients:
    """Two pytrees with the structure of the parameters.

    Attributes:
        task: for the loss of the labels.
        teacher: for all other losses.
    """

    task: Any
    teacher: Any


@dataclass(frozen=True)
class TwoGradientOptimizer:
    """An optimizer of optax's form, apart from its gradients, which are `TwoGradients`.

    Attributes:
        init: parameters -> optimizer state.
        update: `(gradients, state, params) -> (updates, state)`; the updates have the structure of the parameters.
        plain: the optimizer with the same settings for one gradient, the sum of the two.
    """

    init: Callable[[Any], Any]
    update: Callable[[TwoGradients, Any, Any], tuple[Any, Any]]
    plain: optax.GradientTransformation


Optimizer: TypeAlias = optax.GradientTransformation | TwoGradientOptimizer
"""The optimizer of a program. Only a program that computes two gradients takes a `TwoGradientOptimizer`."""


def with_one_gradient(optimizer: Optimizer) -> optax.GradientTransformation:
    """The optimizer itself, or its `plain` if it takes two gradients."""
    return optimizer.plain if isinstance(optimizer, TwoGradientOptimizer) else optimizer


def sum_of_updates(pairs: optax.GradientTransformation, plain: optax.GradientTransformation) -> TwoGradientOptimizer:
    """The optimizer that adds the two updates of `pairs`, whose parameters, gradients and updates are `TwoGradients`.

    Args:
        pairs: gets the parameters twice.
        plain: see `TwoGradientOptimizer`.
    """

    def update(gradients: TwoGradients, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = pairs.update(gradients, state, TwoGradients(params, params))
        return jax.tree.map(jnp.add, updates.task, updates.teacher), state

    return TwoGradientOptimizer(lambda params: pairs.init(TwoGradients(params, params)), update, plain)


def two_gradients(
    losses: Callable[[Any], tuple[tuple[Float[Array, ""], Float[Array, ""]], Aux]], params: Any
) -> tuple[TwoGradients, Aux]:
    """`(gradients, aux)` of two losses that share a forward pass, from one linearisation.

    The backward pass of each loss visits only the operations that this loss depends on. The gradient for a parameter
    that it does not depend on is a constant of zeros.

    Args:
        losses: maps parameters to `((task loss, teacher's loss), aux)`.
        params: the parameters.
    """
    values, linear, aux = jax.linearize(losses, params, has_aux=True)
    found = []
    for i, value in enumerate(values):
        backward = jax.linear_transpose(lambda tangents, i=i: linear(tangents)[i], params)
        found += backward(jnp.ones_like(value))
    return TwoGradients(*found), aux
