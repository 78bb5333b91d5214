"""PredSim's similarity loss: images of a class have similar features.

Reference: Nøkland and Eidnes, "Training neural networks with local error signals" (ICML 2019), and its code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.contract import Metrics
from kd_local.models.convolution import Conv
from kd_local.models.layers import DType
from kd_local.precision import at_least_float32
from kd_local.shapes import check_arrays, check_labels

SIMILARITY_WEIGHT = 0.99


class SimilarityNetwork(nn.Module):
    """A 3x3 convolution without bias, which keeps channels and resolution."""

    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w c"]:
        return Conv(x.shape[-1], dtype=self.dtype, name="conv")(x)


def predsim(
    of_head: Metrics, features: Float[Array, "batch h w c"], labels: Int[Array, " batch"], classes: int
) -> Metrics:
    """0.99 `similarity_loss` + 0.01 cross entropy, and the two terms by name.

    Args:
        of_head: the metrics of the head's logits, with `loss`, their cross entropy.
        features: the outputs of a `SimilarityNetwork`.
        labels: in [0, classes).
        classes: the number of classes.
    """
    similarity = similarity_loss(features, labels, classes)
    cross_entropy = of_head["loss"].astype(similarity.dtype)
    loss = SIMILARITY_WEIGHT * similarity + (1 - SIMILARITY_WEIGHT) * cross_entropy
    return {**of_head, "loss": loss, "similarity": similarity, "cross_entropy": of_head["loss"]}


def similarity_loss(
    features: Float[Array, "batch h w c"], labels: Int[Array, " batch"], classes: int
) -> Float[Array, ""]:
    """The mean squared difference of two (batch, batch) matrices: cosines of features, and of one-hot labels.

    The features are described by the unbiased standard deviation of each channel over space. If there are at most three
    channels, or a single position, all elements describe them. Descriptions and one-hot vectors are centred: their mean
    over the channels or the classes is subtracted.

    Args:
        features: maps.
        labels: in [0, classes).
        classes: the number of classes.

    Raises:
        ValueError: the arrays are no maps and labels of the same images, or a label is not below `classes`.
    """
    check_arrays(features=(features, "float batch h w c"), labels=(labels, "int batch"))
    check_labels(labels, classes)
    features = features.astype(at_least_float32(features.dtype))
    batch, height, width, channels = features.shape
    if channels > 3 and height * width > 1:
        centred = features - features.mean(axis=(1, 2), keepdims=True)
        described = _root(jnp.sum(centred * centred, axis=(1, 2)) / (height * width - 1))
    else:
        described = features.reshape(batch, -1)
    one_hot = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    return jnp.mean(jnp.square(_cosines(described) - _cosines(one_hot)))


def _cosines(x: Float[Array, "batch k"]) -> Float[Array, "batch batch"]:
    x = x - x.mean(axis=1, keepdims=True)
    x = x / (1e-8 + _root(jnp.sum(x * x, axis=1, keepdims=True)))
    return jnp.clip(jnp.dot(x, x.T, precision=jax.lax.Precision.HIGHEST), -1, 1)


def _root(squares: Array) -> Array:
    """The square root, with gradient 0 at 0."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)
