"""The programs of pairs of modules: pure functions, see `kd_local.contract.Function`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import Metrics
from kd_local.local.losses import LocalLoss
from kd_local.local.moving_average import moving_average
from kd_local.local.pair import Pair
from kd_local.networks import COLLECTIONS
from kd_local.state import Part, apply_gradients

HANDED = "handed"
"""The key of gradients and batch statistics of the next module, in the part of the state that a program owns."""


def train_pair(
    pair: Pair,
    optimizer: optax.GradientTransformation,
    part: Part,
    frozen: tuple[Any, ...],
    tensors: tuple[jax.Array, ...],
    rng: PRNGKeyArray,
    weights: Float[Array, " n"],
) -> tuple[Part, tuple[jax.Array, ...], Metrics]:
    """Updates the first module of a pair, with the gradient that the pair before has handed on and its own.

    Args:
        pair: the pair.
        optimizer: see `PairTraining`.
        part, frozen, tensors, rng, weights: see `kd_local.contract.Function`. `frozen` has the variables of the second
            module, what the pair before has handed on, and what the auxiliary network reads.

    Returns:
        `(part, tensors, metrics)`. The part has the gradient and the statistics of the second module under `HANDED`.
    """
    *read, labels = tensors
    second_params, second_stats, *frozen_rest = frozen
    batch_stats = part["batch_stats"]
    if not pair.opens:
        handed, *frozen_rest = frozen_rest
        batch_stats = {**batch_stats, "blocks": handed["batch_stats"]}

    def objective(both: tuple[Any, Any]) -> tuple[Array, Any]:
        own = {"params": both[0], "batch_stats": batch_stats}
        second = {"params": both[1], "batch_stats": second_stats}
        metrics, *others = pair.losses(own, second, tuple(read), labels, weights, tuple(frozen_rest))
        return metrics["loss"], (metrics, *others)

    both = (part["params"], second_params)
    (gradients, hand_on), (metrics, written, own_stats, stats) = jax.grad(objective, has_aux=True)(both)
    if not pair.opens:
        gradients = {**gradients, "blocks": jax.tree.map(jnp.add, gradients["blocks"], handed["params"])}
    updated = apply_gradients(part, optimizer, gradients, own_stats)
    return {**updated, HANDED: {"params": hand_on, "batch_stats": stats}}, (written,), metrics


def train_last(
    loss: LocalLoss,
    optimizer: optax.GradientTransformation,
    part: Part,
    frozen: tuple[Any, ...],
    tensors: tuple[jax.Array, ...],
    rng: PRNGKeyArray,
    constants: Float[Array, "0"],
) -> tuple[Part, tuple[()], Metrics]:
    """Updates the last module with the gradient that the last pair has handed on."""
    (handed,), (logits, labels) = frozen, tensors
    gradients, batch_stats = ({"blocks": handed[collection]} for collection in COLLECTIONS)
    return apply_gradients(part, optimizer, gradients, batch_stats), (), loss(logits, labels)


def update_average(
    part: Part,
    frozen: tuple[Any, ...],
    tensors: tuple[jax.Array, ...],
    rng: PRNGKeyArray,
    constants: Float[Array, " n"],
) -> tuple[Part, tuple[()], Metrics]:
    """The next value of a moving average of the blocks `frozen`. The constant is its momentum."""
    blocks = {str(i): block for i, block in enumerate(frozen)}
    return {**part, "params": moving_average(part["params"], blocks, constants[0])}, (), {}
