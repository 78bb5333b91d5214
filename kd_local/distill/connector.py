"""Connectors: trained modules that bring a student's features into the shape of its teacher's.

Both may be maps or, in transformers with class tokens, sequences.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.distill.tokens import grid_of, join_tokens, split_tokens
from kd_local.models.layers import ConvNorm, DType, average_pool_to
from kd_local.networks import Collection, Variables, apply_block, by_block, init_block, of_block


class Connector(nn.Module):
    """Maps (n, h, w, c) to (n, *shape): a 1x1 convolution without bias, batch normalisation, and ReLU if `relu`.

    If the input is larger than `shape`, it is resized before the convolution: average-pooled if the sizes divide, else
    bilinearly with antialiasing. If it is smaller, the convolution's output is resized bilinearly. Use the ReLU if the
    next block expects features after a ReLU, as the blocks of a ResNet do. Those of a pre-activation network do not.

    Input and output may be sequences (n, 1, class tokens + patches, c). Their patches are treated as a square map.

    - From tokens to a map, the mean of the class tokens is added to every patch, as in the readout "add" of Ranftl et
      al. (DPT, arXiv 2103.13413). The student's head reads the class token alone: if it were left out, the stone after
      the last stage would train patches that the student's logits do not depend on.
    - From a map to tokens, each class token is the mean of the output's patches: the teacher's head reads the class
      token alone, so it must depend on the student's features.
    - From tokens to as many tokens, class tokens pass the same convolution and normalisation as the patches. They are
      not resized.

    Attributes:
        shape: (h', w', c') of the output, or (1, class tokens + patches, c').
        relu: True for a ReLU at the end.
        dtype: compute dtype; None: the dtype of the input.
        class_tokens: of input and output; 0 for a map.
    """

    shape: tuple[int, int, int]
    relu: bool = True
    dtype: DType = None
    class_tokens: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 c2"]:
        given, wanted = self.class_tokens
        height, width = grid_of(self.shape, wanted)
        convolve = ConvNorm(self.shape[2], kernel_size=1, relu=self.relu, dtype=self.dtype or x.dtype, name="conv")
        tokens, x = split_tokens(x, given)
        if given != wanted and given:
            x = x + tokens.mean(axis=2, keepdims=True)
        larger = height * width < x.shape[1] * x.shape[2]
        if larger:
            x = _resize(x, (height, width))
        if given == wanted and given:
            y = convolve(join_tokens(tokens, x), train=train)
            tokens, y = y[:, :, :given], y[:, :, given:].reshape(*x.shape[:3], -1)
        else:
            y = convolve(x, train=train)
        if not larger:
            y = _resize(y, (height, width))
        if not wanted:
            return y
        if given != wanted:
            tokens = jnp.broadcast_to(y.mean(axis=1).mean(axis=1)[:, None, None], (len(y), 1, wanted, y.shape[3]))
        return join_tokens(tokens, y)


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
