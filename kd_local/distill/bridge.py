"""Bridges: trained modules between the feature spaces of two networks, in either direction."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import dtypes
from jaxtyping import Array, Float

from kd_local.models.convolution import Conv, conv2d, uniform_by_fan_in
from kd_local.models.layers import DType
from kd_local.models.normalization import BatchNorm

_KERNEL = 4


class Bridge(nn.Module):
    """Maps (n, h, w, c) to (n, *shape): a convolution, batch normalisation and, with `relu`, LeakyReLU of slope 0.1.

    At equal sizes, the convolution is 3x3 without bias. If the input is twice as large, it is 3x3 with stride 2 and
    bias. If the input is half as large, it is a `TransposedConv`. Kernels start normal with variance 2 / fan_out.

    Attributes:
        shape: (h', w', c') of the output.
        relu: True if the next stage expects features after a ReLU.
        dtype: compute dtype; None: the dtype of the input.

    Reference: Liu et al., "Function-consistent feature distillation" (ICLR 2023, arXiv 2304.11832).

    Raises:
        ValueError: the sizes have another ratio.
    """

    shape: tuple[int, int, int]
    relu: bool = True
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 c2"]:
        (*size, features), source, dtype = self.shape, list(x.shape[1:3]), self.dtype or x.dtype
        if size == source:
            x = Conv(features, dtype=dtype, name="conv")(x)
        elif size == [-(-length // 2) for length in source]:
            x = Conv(features, stride=2, use_bias=True, dtype=dtype, name="conv")(x)
        elif size == [2 * length for length in source]:
            x = TransposedConv(features, dtype=dtype, name="conv")(x)
        else:
            raise ValueError(
                f"no bridge from maps of {source[0]}x{source[1]} to {size[0]}x{size[1]}: expected equal sizes or a "
                "factor of 2; use networks whose stages have such resolutions, or block_kd"
            )
        x = BatchNorm(dtype=dtype, name="norm")(x, train=train)
        return nn.leaky_relu(x, 0.1) if self.relu else x


class TransposedConv(nn.Module):
    """A transposed 4x4 convolution with stride 2, padding 1 and bias: maps (n, h, w, c) to (n, 2h, 2w, features).

    Parameters: "kernel" (4, 4, c, features) and "bias" (features,). As PyTorch counts for transposed convolutions, the
    kernel's fan_out is 16 c, and the bias starts uniform in +-1/sqrt(16 features).

    Output rows 2q depend on input rows q - 1 and q, and output rows 2q + 1 on q and q + 1. So this is one 2x2
    convolution with four times the features, whose outputs are interleaved.
    """

    features: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 k"]:
        batch, height, width, channels = x.shape
        # flax counts the fan_out of (4, 4, c, features) as 16 features.
        initialiser = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", initialiser, (_KERNEL, _KERNEL, channels, self.features), jnp.float32)
        bias = self.param("bias", uniform_by_fan_in(_KERNEL**2 * self.features), (self.features,), jnp.float32)
        x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        # Taps of the even and of the odd outputs, by increasing input: (3, 1) and (2, 0).
        taps = jnp.stack([kernel[3::-2], kernel[2::-2]])  # parity of the row, row, column, ...
        taps = jnp.stack([taps[:, :, 3::-2], taps[:, :, 2::-2]], axis=1)  # parities, row, column, c, features
        together = taps.transpose(2, 3, 4, 0, 1, 5).reshape(2, 2, channels, 4 * self.features)
        y = conv2d(x, together, padding=1).reshape(batch, height + 1, width + 1, 2, 2, self.features)
        rows = jnp.stack([y[:, :height, :, 0], y[:, 1:, :, 1]], axis=2)
        both = jnp.stack([rows[:, :, :, :width, 0], rows[:, :, :, 1:, 1]], axis=4)
        return both.reshape(batch, 2 * height, 2 * width, self.features) + bias.reshape(1, 1, 1, -1)
