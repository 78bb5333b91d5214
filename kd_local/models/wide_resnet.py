"""Wide ResNets for small images. Blocks are pre-activation: each begins with batch normalisation and ReLU.

Reference: Zagoruyko and Komodakis, "Wide residual networks" (arXiv 1605.07146), table 1, without dropout.
"""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.models.convolution import Conv
from kd_local.models.ends import check_classes
from kd_local.models.layers import ConvNorm, DType, Linear, global_average_pool
from kd_local.models.normalization import BatchNorm
from kd_local.networks import Network


class ConvStem(nn.Module):
    """Stem: a 3x3 convolution without normalisation."""

    features: int
    dtype: DType = None
    layers: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w k"]:
        return Conv(self.features, dtype=self.dtype, name="conv")(x)


class PreActivationBlock(nn.Module):
    """Residual block: batch normalisation, ReLU and 3x3 convolution, twice.

    If the shape changes, the shortcut is a 1x1 convolution of the first ReLU's output.
    """

    features: int
    stride: int = 1
    dtype: DType = None
    layers: ClassVar[int] = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        active = nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
        residual = ConvNorm(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(active, train=train)
        residual = Conv(self.features, dtype=self.dtype, name="conv2")(residual)
        if self.stride == 1 and x.shape[-1] == self.features:
            return residual + x.astype(residual.dtype)
        projection = Conv(self.features, kernel_size=1, stride=self.stride, dtype=self.dtype, name="projection")
        return residual + projection(active)


class NormClassifier(nn.Module):
    """Head: batch normalisation, ReLU, global average pooling and a linear layer. Returns the logits."""

    classes: int
    dtype: DType = None
    layers: ClassVar[int] = 1

    def setup(self) -> None:
        self.norm = BatchNorm(dtype=self.dtype)
        self.linear = Linear(self.classes, dtype=self.dtype)

    def before_relu(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w c"]:
        """The input of the ReLU."""
        return self.norm(x, train=train)

    def rectify(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """The ReLU."""
        return nn.relu(x)

    def before_pooling(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w c"]:
        """The map whose mean over height and width is the result of `pool`."""
        return self.rectify(self.before_relu(x, train=train))

    def pool(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch c"]:
        """The pooled features, the input of the linear layer."""
        return global_average_pool(self.before_pooling(x, train=train))

    def classify(self, pooled: Float[Array, "batch c"]) -> Float[Array, "batch k"]:
        """The logits for features from `pool`."""
        return self.linear(pooled)

    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        return self.classify(self.pool(x, train=train))


def wide_resnet(depth: int, width: int, *, classes: int, dtype: DType = None) -> Network:
    """The Wide ResNet of a given depth and width, for images of 8x8 to 96x96 and larger.

    Args:
        depth: 6n+4 with n >= 1 blocks per stage: 10, 16, 22, 28, 40, ...
        width: multiplies the 16, 32 and 64 channels of the three stages. The stem has 16 channels.
        classes: number of logits, at least 1.
        dtype: compute dtype; parameters stay float32. None computes in the common type of images and parameters.

    Raises:
        ValueError: an argument is out of range.
    """
    if depth < 10 or (depth - 4) % 6:
        lower = max(10, (depth - 4) // 6 * 6 + 4)
        raise ValueError(
            f"no Wide ResNet of depth {depth}: use 6n+4 (10, 16, 22, 28, 34, 40, ...); the nearest are {lower} and "
            f"{lower + 6}"
        )
    if width < 1:
        raise ValueError(f"width is {width}: use a positive factor, such as 1, 2 or 10")
    check_classes(classes)
    blocks: dict[str, nn.Module] = {"stem": ConvStem(16, dtype=dtype)}
    for stage in (1, 2, 3):
        for index in range((depth - 4) // 6):
            stride = 2 if stage > 1 and index == 0 else 1
            blocks[f"stage{stage}/{index}"] = PreActivationBlock(8 * 2**stage * width, stride, dtype)
    blocks["head"] = NormClassifier(classes, dtype=dtype)
    return Network.of(blocks)
