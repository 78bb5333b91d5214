"""MobileNets, versions 1 and 2: pairs of depthwise and 1x1 convolutions. Version 2 has no dropout here.

Reference: Howard et al., "MobileNets" (arXiv 1704.04861), table 1; Sandler et al., "MobileNetV2" (arXiv 1801.04381),
table 2. Form for small images: Tian et al., "Contrastive representation distillation" (arXiv 1910.10699).
"""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.models.ends import Classifier, ConvClassifier, Stem, check_classes
from kd_local.models.layers import ConvNorm, DType
from kd_local.networks import Network

# Version 1: channels and stride of each block, by stage. The first block of stage 1, not listed, is a convolution (32,
# 2).
_SEPARABLE = (((64, 1), (128, 2), (128, 1)), ((256, 2), (256, 1)), ((512, 2), *[(512, 1)] * 5), ((1024, 2), (1024, 1)))
# Version 2: channels, number and first stride of equal blocks, by stage.
_INVERTED = (((16, 1, 1), (24, 2, 2)), ((32, 3, 2),), ((64, 4, 2), (96, 3, 1)), ((160, 3, 2), (320, 1, 1)))


class CappedStem(nn.Module):
    """Stem: 3x3 convolution with stride 2, batch normalisation, ReLU6."""

    features: int
    dtype: DType = None
    layers: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        return ConvNorm(self.features, stride=2, relu6=True, dtype=self.dtype, name="conv")(x, train=train)


class SeparableBlock(nn.Module):
    """Depthwise 3x3 convolution and 1x1 convolution, each with batch normalisation and ReLU."""

    features: int
    stride: int = 1
    dtype: DType = None
    relu: bool = True
    layers: ClassVar[int] = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        channels = x.shape[-1]
        depthwise = ConvNorm(channels, stride=self.stride, groups=channels, dtype=self.dtype, name="depthwise")
        pointwise = ConvNorm(self.features, kernel_size=1, relu=self.relu, dtype=self.dtype, name="pointwise")
        return pointwise(depthwise(x, train=train), train=train)


class InvertedResidual(nn.Module):
    """Residual block: 1x1 convolution to `expansion` times the channels (None: no convolution), depthwise 3x3, 1x1.

    There is a shortcut if input and output have the same shape. The output has no ReLU.
    """

    features: int
    stride: int = 1
    expansion: int | None = 6
    relu6: bool = True
    dtype: DType = None

    @property
    def layers(self) -> int:
        """The number of convolutions on the main path."""
        return 2 if self.expansion is None else 3

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        y, wide = x, x.shape[-1] * (self.expansion or 1)
        if self.expansion is not None:
            y = ConvNorm(wide, kernel_size=1, relu6=self.relu6, dtype=self.dtype, name="expand")(y, train=train)
        depthwise = ConvNorm(
            wide, stride=self.stride, groups=wide, relu6=self.relu6, dtype=self.dtype, name="depthwise"
        )
        project = ConvNorm(self.features, kernel_size=1, relu=False, dtype=self.dtype, name="project")
        y = project(depthwise(y, train=train), train=train)
        return y + x.astype(y.dtype) if self.stride == 1 and x.shape[-1] == self.features else y


def mobilenetv1(*, classes: int, dtype: DType = None) -> Network:
    """MobileNet for images of 224x224. The first convolution belongs to stage 1.

    Args:
        classes: number of logits, at least 1.
        dtype: compute dtype; parameters stay float32. None computes in the common type of images and parameters.

    Raises:
        ValueError: `classes` is out of range.
    """
    check_classes(classes)
    blocks: dict[str, nn.Module] = {"stage1/0": Stem(32, stride=2, dtype=dtype)}
    for stage, separable in enumerate(_SEPARABLE, start=1):
        for index, (features, stride) in enumerate(separable, start=int(stage == 1)):
            blocks[f"stage{stage}/{index}"] = SeparableBlock(features, stride, dtype)
    blocks["head"] = Classifier(classes, dtype=dtype)
    return Network.of(blocks)


def mobilenetv2(
    *, classes: int, width: float = 1.0, relu6: bool = True, small_images: bool = False, dtype: DType = None
) -> Network:
    """MobileNetV2. The last 1x1 convolution belongs to the head, so that the last stage ends with the last block.

    Args:
        classes: number of logits, at least 1.
        width: multiplies the blocks' channels, at least 1/16; above 1 it also multiplies the head's 1280 channels.
        relu6: True for ReLU6, as in the paper; False for ReLU.
        small_images: if True (images of 8x8 to 96x96), the block with 24 channels has stride 1, the first block has an
            additional 1x1 convolution (expansion 1), and channels are rounded down. If False, channels are multiples
            of 8.
        dtype: compute dtype; parameters stay float32. None computes in the common type of images and parameters.

    Raises:
        ValueError: `classes` or `width` is out of range.
    """
    check_classes(classes)
    if not width >= 1 / 16:
        raise ValueError(f"width is {width}: use a factor of at least 1/16, such as 0.5 or 1")
    scale = (lambda channels: int(channels * width)) if small_images else (lambda channels: _eighths(channels * width))
    stem = CappedStem(scale(32), dtype) if relu6 else Stem(scale(32), stride=2, dtype=dtype)
    blocks: dict[str, nn.Module] = {"stem": stem}
    for stage, groups in enumerate(_INVERTED, start=1):
        strides = [(features, stride if i == 0 else 1) for features, count, stride in groups for i in range(count)]
        for index, (features, stride) in enumerate(strides):
            expansion: int | None = 6
            if features == 16:
                expansion = 1 if small_images else None
            if features == 24 and small_images:
                stride = 1
            blocks[f"stage{stage}/{index}"] = InvertedResidual(scale(features), stride, expansion, relu6, dtype)
    blocks["head"] = ConvClassifier(classes, scale(1280) if width > 1 else 1280, relu6, dtype)
    return Network.of(blocks)


def _eighths(channels: float) -> int:
    """The nearest multiple of 8 that is at least 8 and at least 0.9 times the number."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
