"""Local losses: what a module's head is trained by."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from kd_local.contract import Metrics
from kd_local.errors import unknown

LocalLoss = Callable[[Float[Array, "batch k"], Int[Array, " batch"]], Metrics]
"""`(outputs of the head, labels) -> means over the batch`, of which `loss` is minimised."""


def softmax(logits: Float[Array, "batch k"], labels: Int[Array, " batch"]) -> Metrics:
    """Cross entropy of the softmax (mean over the batch, in nats) and accuracy in [0, 1], in float32 at least."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
    return {"loss": loss, "accuracy": correct.astype(jnp.float32).mean()}


LOSSES: dict[str, LocalLoss] = {"softmax": softmax}


def local_loss(name: str) -> LocalLoss:
    """The local loss of that name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in LOSSES:
        raise unknown("local loss", name, LOSSES)
    return LOSSES[name]
