"""Local losses, which train a module through its head."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from kd_local.contract import Metrics
from kd_local.errors import unknown
from kd_local.precision import at_least_float32
from kd_local.shapes import check_arrays, check_labels

LocalLoss = Callable[..., Metrics]
"""`(outputs of the head, labels, *targets) -> means over the batch`; training minimises `loss`. Only the losses of a
`TargetRule` have targets."""

TEMPERATURE = 0.07


def softmax(logits: Float[Array, "batch k"], labels: Int[Array, " batch"]) -> Metrics:
    """Cross entropy of the softmax (mean over the batch, in nats) and accuracy in [0, 1], in float32 at least.

    Raises:
        ValueError: the arrays are no logits and labels of the same images, or a label is not below k.
    """
    check_arrays(logits=(logits, "float batch k"), labels=(labels, "int batch"))
    check_labels(labels, logits.shape[-1])
    logits = logits.astype(at_least_float32(logits.dtype))
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
    return {"loss": loss, "accuracy": correct.astype(jnp.float32).mean()}


def contrast(features: Float[Array, "batch k"], labels: Int[Array, " batch"]) -> Metrics:
    """Supervised contrastive loss of features, with one view per image: the mean in nats, in float32 at least.

    z_i is the feature vector of image i, scaled to length 1, and P(i) are the other images of its class. Then

        l_i = -1/|P(i)| sum over p in P(i) of log(exp(z_i z_p / t) / sum over a != i of exp(z_i z_a / t)), t = 0.07

    The loss is the mean of l_i over the batch. If no other image is of the class of image i, l_i is 0.

    Reference: Khosla et al., "Supervised contrastive learning" (NeurIPS 2020), eq. 2, as InfoPro (Wang et al., ICLR
    2021) uses it.

    Raises:
        ValueError: the arrays are no features and labels of the same images.
    """
    check_arrays(features=(features, "float batch k"), labels=(labels, "int batch"))
    features = features.astype(at_least_float32(features.dtype))
    if len(labels) == 1:  # the sum over other images is empty, and its logarithm infinite
        return {"loss": jnp.zeros_like(features).sum()}
    squares = jnp.sum(features * features, axis=-1, keepdims=True)
    # Norms under 1e-12 count as 1e-12, as in PyTorch's normalize; the inner `where` keeps the root's gradient finite.
    large = squares > 1e-24
    z = features / jnp.where(large, jnp.sqrt(jnp.where(large, squares, 1)), 1e-12)
    similarity = jnp.dot(z, z.T, precision=jax.lax.Precision.HIGHEST) / TEMPERATURE
    others = ~jnp.eye(len(labels), dtype=bool)
    log_probability = similarity - jax.nn.logsumexp(similarity, axis=-1, keepdims=True, where=others)
    positive = (labels[:, None] == labels[None, :]) & others
    total = jnp.where(positive, log_probability, 0).sum(axis=-1)
    return {"loss": -(total / jnp.maximum(positive.sum(axis=-1), 1).astype(total.dtype)).mean()}


# `predsim` adds a term that does not depend on the head's outputs, see `kd_local.local.similarity`.
LOSSES: dict[str, LocalLoss] = {"softmax": softmax, "contrast": contrast, "predsim": softmax}


def local_loss(name: str) -> LocalLoss:
    """The local loss of this name, as a function of the head's outputs.

    Raises:
        ValueError: the name is not one of `LOSSES`.
    """
    if name not in LOSSES:
        raise unknown("local loss", name, LOSSES)
    return LOSSES[name]
