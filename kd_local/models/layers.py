"""The layers that all networks, heads and contexts share, with the initialisation of the reference code."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.models.convolution import Conv, uniform_by_fan_in
from kd_local.models.normalization import BatchNorm

DType = Any


class Linear(nn.Module):
    """A fully connected layer, weights and bias uniform in +-1/sqrt(fan_in)."""

    features: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch c"]) -> Float[Array, "batch k"]:
        initialiser = uniform_by_fan_in(x.shape[-1])
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=initialiser, bias_init=initialiser, name="dense")(
            x
        )


class ConvNorm(nn.Module):
    """Convolution and batch normalisation (eps 1e-5, momentum 0.9), with ReLU unless told otherwise.

    Statistics are taken and kept in float32 at least, whatever the compute dtype.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    relu: bool = True
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        x = Conv(
            self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = BatchNorm(dtype=self.dtype, name="norm")(x, train=train)
        return nn.relu(x) if self.relu else x


def global_average_pool(x: Float[Array, "batch h w c"]) -> Float[Array, "batch c"]:
    """The mean over height and width."""
    return x.mean(axis=(1, 2))
