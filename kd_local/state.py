"""The part of the state that one program owns, and one gradient step of it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import optax
from jaxtyping import Array, Float

from kd_local.errors import check_type
from kd_local.networks import COLLECTIONS, Variables
from kd_local.two_gradients import Optimizer, TwoGradientOptimizer

Part = dict[str, Any]
"""`{"params": ..., "batch_stats": ..., "opt_state": ...}`."""

Extra = TypeVar("Extra")


def variables_of(part: Mapping[str, Any]) -> Variables:
    """The variables in a part: the part without the optimizer's state. A collection that is missing is empty."""
    return {collection: part.get(collection, {}) for collection in COLLECTIONS}


def check_optimizer(optimizer: object) -> None:
    """Check that an argument is an optimizer of optax, which takes one gradient.

    Raises:
        ValueError: it is something else, such as a learning rate, or takes two gradients.
    """
    if isinstance(optimizer, TwoGradientOptimizer):
        raise ValueError(
            "the optimizer takes two gradients, of the labels and of a teacher (DOT), but this method computes one: "
            "use its `plain`, or Distillation"
        )
    check_type("optimizer", optimizer, optax.GradientTransformation, "use one of optax, such as optax.sgd(0.1)")


def new_part(variables: Variables, optimizer: Optimizer) -> Part:
    """A new part: the given variables and the optimizer's initial state."""
    return {**variables_of(variables), "opt_state": optimizer.init(variables["params"])}


def update_part(
    part: Part,
    optimizer: optax.GradientTransformation,
    objective: Callable[[Any], tuple[Float[Array, ""], tuple[Any, Extra]]],
) -> tuple[Part, Float[Array, ""], Extra]:
    """One optimizer step of a part's parameters.

    Args:
        part: the part before the step.
        optimizer: the optimizer whose state the part contains.
        objective: maps parameters to `(loss, (batch_stats, extra))`. The loss is a scalar. `extra` is any pytree.

    Returns:
        `(part, loss, extra)`: the part after the step. Loss and extra are those of the parameters before the step.
    """
    (loss, (batch_stats, extra)), gradients = jax.value_and_grad(objective, has_aux=True)(part["params"])
    return apply_gradients(part, optimizer, gradients, batch_stats), loss, extra


def apply_gradients(part: Part, optimizer: Optimizer, gradients: Any, batch_stats: Mapping[str, Any]) -> Part:
    """One optimizer step of a part's parameters with given gradients.

    Args:
        part: the part before the step.
        optimizer: the optimizer whose state the part contains.
        gradients: with the structure of the parameters, or `TwoGradients` of it.
        batch_stats: the batch statistics after the step.
    """
    updates, opt_state = optimizer.update(gradients, part["opt_state"], part["params"])
    params = optax.apply_updates(part["params"], updates)
    return {"params": params, "batch_stats": dict(batch_stats), "opt_state": opt_state}
