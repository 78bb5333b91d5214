"""ResNets with four stages: for ImageNet and, with a smaller stem, for 32x32 images.

A bottleneck has its stride in the 3x3 convolution, as in today's checkpoints, not in the first 1x1 convolution. The
maximum pooling after the stem is the first layer of stage 1.

Reference: He et al., "Deep residual learning for image recognition" (arXiv 1512.03385), table 1.
"""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.errors import unknown
from kd_local.models.ends import Classifier, Stem, check_classes
from kd_local.models.layers import ConvNorm, DType, max_pool
from kd_local.models.resnet import BasicBlock
from kd_local.networks import Network

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Bottleneck(nn.Module):
    """Residual block with 1x1, 3x3 and 1x1 convolutions. The first two have a quarter of the output's channels.

    If the shape changes, the shortcut is a projection (1x1 convolution and batch normalisation). With `pool_first`, 3x3
    maximum pooling comes first.
    """

    features: int
    stride: int = 1
    dtype: DType = None
    pool_first: bool = False
    relu: bool = True
    layers: ClassVar[int] = 3

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        if self.pool_first:
            x = max_pool(x, 3, stride=2, padding=1)
        inner, dtype = self.features // 4, self.dtype
        residual = ConvNorm(inner, kernel_size=1, dtype=dtype, name="conv1")(x, train=train)
        residual = ConvNorm(inner, stride=self.stride, dtype=dtype, name="conv2")(residual, train=train)
        residual = ConvNorm(self.features, kernel_size=1, relu=False, dtype=dtype, name="conv3")(residual, train=train)
        shortcut = x.astype(residual.dtype)
        if self.stride != 1 or x.shape[-1] != self.features:
            projection = ConvNorm(
                self.features, kernel_size=1, stride=self.stride, relu=False, dtype=dtype, name="projection"
            )
            shortcut = projection(x, train=train)
        return nn.relu(residual + shortcut) if self.relu else residual + shortcut


def imagenet_resnet(depth: int, *, classes: int, small_images: bool = False, dtype: DType = None) -> Network:
    """The ResNet of a given depth.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        classes: number of logits, at least 1.
        small_images: if True (images of 8x8 to 96x96), the stem is a 3x3 convolution with stride 1. If False (224x224),
            the stem is a 7x7 convolution with stride 2, and maximum pooling follows.
        dtype: compute dtype; parameters stay float32. None computes in the common type of images and parameters.

    Raises:
        ValueError: an argument is out of range.
    """
    if depth not in _BLOCKS:
        raise unknown("depth of an ImageNet ResNet", depth, map(str, _BLOCKS))
    check_classes(classes)
    stem = Stem(64, dtype=dtype) if small_images else Stem(64, kernel_size=7, stride=2, dtype=dtype)
    blocks: dict[str, nn.Module] = {"stem": stem}
    for stage, count in enumerate(_BLOCKS[depth], start=1):
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            pool_first = stage == 1 and index == 0 and not small_images
            features = 32 * 2**stage
            if depth < 50:
                block: nn.Module = BasicBlock(features, stride, dtype=dtype, pool_first=pool_first)
            else:
                block = Bottleneck(4 * features, stride, dtype, pool_first)
            blocks[f"stage{stage}/{index}"] = block
    blocks["head"] = Classifier(classes, dtype=dtype)
    return Network.of(blocks)
