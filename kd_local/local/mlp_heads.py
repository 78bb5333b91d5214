"""Local heads that read pooled features, channel first: those of DGL and of PredSim.

Their structure is that of the authors' code for CIFAR ResNets, as repeated in the code of AugLocal (arXiv 2402.17318).
"""

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.models.convolution import uniform_by_fan_in
from kd_local.models.layers import ConvNorm, DType, Linear, average_pool_to
from kd_local.models.normalization import BatchNorm


class PooledMLP(nn.Module):
    """DGL's head "mlp-sr": pooling, three 1x1 convolutions, pooling, two hidden layers and a linear layer.

    Features of C channels and size S x S are pooled to ceil(S/4), and after the convolutions to min(ceil(S/4), 2).
    Convolutions and hidden layers have no bias, but batch normalisation and ReLU.

    Reference: Belilovsky et al., "Decoupled greedy learning of CNNs" (ICML 2020), section 4.

    Attributes:
        outputs: units of the last linear layer.
        width: multiplies the C channels of the convolutions, and thereby the hidden units.
        dtype: compute dtype.
    """

    outputs: int
    width: float = 1.0
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        features = max(1, int(x.shape[-1] * self.width))
        height, width = -(-x.shape[1] // 4), -(-x.shape[2] // 4)
        x = average_pool_to(x, (height, width))
        for i in range(3):
            x = ConvNorm(features, kernel_size=1, dtype=self.dtype, name=f"conv{i}")(x, train=train)
        x = channel_first(average_pool_to(x, (min(height, 2), min(width, 2))))
        units = x.shape[-1]
        for i in range(2):
            x = HiddenNorm(units, dtype=self.dtype, name=f"hidden{i}")(x, train=train)
        return Linear(self.outputs, dtype=self.dtype, name="linear")(x)


class PooledLinear(nn.Module):
    """PredSim's head: average pooling to at most 512 features, and a linear layer.

    The pooling window starts at 1 x 1. Its height, then its width, then its height, ... is doubled until at most 512
    features remain, so that the window is not always square. The last window of an axis can be smaller.

    Reference: Nøkland and Eidnes, "Training neural networks with local error signals" (ICML 2019), and its code.

    Attributes:
        outputs: units of the linear layer.
        width: multiplies the 512 features. The class in the authors' code has 1024, their command 512.
        dtype: compute dtype.
    """

    outputs: int
    width: float = 1.0
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        height, width = pooling_window(x.shape[1:], max(1, int(512 * self.width)))
        pooled = average_pool_to(x, (-(-x.shape[1] // height), -(-x.shape[2] // width)))
        return Linear(self.outputs, dtype=self.dtype, name="linear")(channel_first(pooled))


class HiddenNorm(nn.Module):
    """A linear layer, with or without bias, batch normalisation over the batch, and ReLU."""

    features: int
    use_bias: bool = False
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch c"], *, train: bool) -> Float[Array, "batch k"]:
        initialiser = uniform_by_fan_in(x.shape[-1])
        x = nn.Dense(
            self.features,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=initialiser,
            bias_init=initialiser,
            name="dense",
        )(x)
        return nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x[:, None, None], train=train)[:, 0, 0])


def channel_first(x: Float[Array, "batch h w c"]) -> Float[Array, "batch k"]:
    """The features of each image as a vector, in the order (channel, height, width) of PyTorch."""
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def pooling_window(shape: tuple[int, ...], features: int) -> tuple[int, int]:
    """Height and width of the pooling window of `PooledLinear`.

    >>> pooling_window((32, 32, 16), 512), pooling_window((8, 8, 64), 512)
    ((8, 4), (4, 2))

    Args:
        shape: height, width and channels of the input.
        features: the largest number of features after pooling.
    """
    height, width, channels = shape
    window = [1, 1]
    while channels * -(-height // window[0]) * -(-width // window[1]) > features:
        axis = 0 if window[0] <= window[1] else 1
        if window[0] >= height and window[1] >= width:
            break
        window[axis] *= 2
    return window[0], window[1]
