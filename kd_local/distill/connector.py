"""Connectors: trained modules that bring a student's features into the shape of its teacher's."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.models.layers import ConvNorm, DType, average_pool_to
from kd_local.networks import Collection, Variables, apply_block, by_block, init_block, of_block


class Connector(nn.Module):
    """Maps (n, h, w, c) to (n, *shape): a 1x1 convolution without bias, batch normalisation, and ReLU if `relu`.

    If the input is larger than `shape`, it is resized before the convolution: average-pooled if the sizes divide, else
    bilinearly with antialiasing. If it is smaller, the convolution's output is resized bilinearly. Use the ReLU if the
    next block expects features after a ReLU, as the blocks of a ResNet do. Those of a pre-activation network do not.

    Attributes:
        shape: (h', w', c') of the output.
        relu: True for a ReLU at the end.
        dtype: compute dtype; None: the dtype of the input.
    """

    shape: tuple[int, int, int]
    relu: bool = True
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 c2"]:
        height, width, channels = self.shape
        convolve = ConvNorm(channels, kernel_size=1, relu=self.relu, dtype=self.dtype or x.dtype, name="conv")
        if height * width < x.shape[1] * x.shape[2]:
            return convolve(_resize(x, (height, width)), train=train)
        return _resize(convolve(x, train=train), (height, width))


def _resize(x: Array, size: tuple[int, int]) -> Array:
    if x.shape[1] % size[0] == 0 and x.shape[2] % size[1] == 0:
        return average_pool_to(x, size)
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear")


def init_connectors(
    connectors: Mapping[str, nn.Module], rng: PRNGKeyArray, inputs: Mapping[str, Sequence[Any]]
) -> Variables:
    """New variables of several connectors by name. Only the shapes and dtypes of `inputs` matter."""
    keys = jax.random.split(rng, len(connectors))
    return by_block(
        {
            name: init_block(connector, key, *inputs[name])
            for (name, connector), key in zip(connectors.items(), keys, strict=True)
        }
    )


def apply_connectors(
    connectors: Mapping[str, nn.Module],
    variables: Variables,
    inputs: Mapping[str, Sequence[Any]],
    *,
    train: bool,
) -> tuple[dict[str, Array], Collection]:
    """`(outputs by name, batch statistics)` of several connectors. In training mode the statistics are updated."""
    outputs: dict[str, Array] = {}
    statistics: Collection = {}
    for name, connector in connectors.items():
        outputs[name], own_statistics = apply_block(connector, of_block(variables, name), *inputs[name], train=train)
        if own_statistics:
            statistics[name] = own_statistics
    return outputs, statistics
