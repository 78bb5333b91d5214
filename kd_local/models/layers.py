"""Layers that networks, heads and context networks share, with the initialisation of the reference code."""

from functools import reduce
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kd_local.models.convolution import Conv, shifted, uniform_by_fan_in
from kd_local.models.normalization import BatchNorm

DType = Any


class Linear(nn.Module):
    """A fully connected layer. Weights and bias start uniform in +-1/sqrt(fan_in)."""

    features: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch c"]) -> Float[Array, "batch k"]:
        initialiser = uniform_by_fan_in(x.shape[-1])
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=initialiser, bias_init=initialiser, name="dense")(
            x
        )


class ConvNorm(nn.Module):
    """Convolution, batch normalisation (eps 1e-5, momentum 0.9) and, with `relu`, ReLU or, with `relu6`, ReLU6.

    For any compute dtype, statistics are computed and stored in float32 at least.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    relu: bool = True
    dtype: DType = None
    groups: int = 1
    relu6: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        x = Conv(
            self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            use_bias=self.use_bias,
            groups=self.groups,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = BatchNorm(dtype=self.dtype, name="norm")(x, train=train)
        if not self.relu:
            return x
        return nn.relu6(x) if self.relu6 else nn.relu(x)


def global_average_pool(x: Float[Array, "batch h w c"]) -> Float[Array, "batch c"]:
    """The mean over height and width."""
    return x.mean(axis=(1, 2))


def max_pool(
    x: Float[Array, "batch h w c"], size: int, *, stride: int, padding: int = 0
) -> Float[Array, "batch h2 w2 c"]:
    """The maximum of each window, without the padding. Equal maxima share the gradient.

    The function computes a maximum of shifted images. On the CPU its gradient is 4 to 40 times as fast as the gradient
    of a windowed reduction.
    """
    return reduce(jnp.maximum, shifted(x, (size, size), stride, (padding, padding), fill=-jnp.inf))


def average_pool(
    x: Float[Array, "batch h w c"], size: int, *, stride: int, padding: int = 0
) -> Float[Array, "batch h2 w2 c"]:
    """The mean of each window; the padding counts as zeros."""
    return reduce(jnp.add, shifted(x, (size, size), stride, (padding, padding))) / size**2


def average_pool_to(x: Float[Array, "batch hx wx c"], size: tuple[int, int]) -> Float[Array, "batch h w c"]:
    """Average pooling to a `(height, width)`. Each output is the mean of the inputs that it overlaps.

    Neighbouring windows share inputs if a size does not divide the input's. A larger size repeats inputs.

    Reference: PyTorch's `adaptive_avg_pool2d`.
    """
    batch, height, width, channels = x.shape
    if (height, width) == size:
        return x
    if height % size[0] == 0 and width % size[1] == 0:
        factors = height // size[0], width // size[1]
        # One axis after the other: on the CPU, jax 0.10.2 sometimes crashed in reductions over two separate axes.
        x = x.reshape(batch, size[0], factors[0], width, channels).mean(axis=2)
        return x.reshape(batch, *size, factors[1], channels).mean(axis=3)
    rows = jnp.asarray(_averaging(height, size[0]), x.dtype)
    columns = jnp.asarray(_averaging(width, size[1]), x.dtype)
    return jnp.einsum("oh,nhwc,pw->nopc", rows, x, columns)


def _averaging(inputs: int, outputs: int) -> np.ndarray:
    matrix = np.zeros((outputs, inputs))
    for i in range(outputs):
        start, end = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
        matrix[i, start:end] = 1 / (end - start)
    return matrix
