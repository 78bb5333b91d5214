"""CIFAR ResNets: 3x3 stem, three stages of post-activation basic blocks, pooling and a linear head.

Reference: He et al., "Deep residual learning for image recognition" (arXiv 1512.03385), section 4.2. Projection
shortcuts and initialisation: Yu et al., arXiv 2312.07636.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.choices.networks import SHORTCUTS
from kd_local.errors import unknown
from kd_local.models.ends import Classifier, Stem, check_classes
from kd_local.models.layers import ConvNorm, DType, max_pool
from kd_local.networks import Network


class BasicBlock(nn.Module):
    """Residual block with two 3x3 convolutions. With `pool_first`, 3x3 maximum pooling comes first.

    If the shape changes, the shortcut is a projection (1x1 convolution and batch normalisation). With
    `shortcut="padding"` it subsamples and pads the channels with zeros, half on each side (option A of He et al.).
    """

    features: int
    stride: int = 1
    shortcut: str = "projection"
    dtype: DType = None
    pool_first: bool = False
    relu: bool = True
    layers: ClassVar[int] = 2

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        if self.pool_first:
            x = max_pool(x, 3, stride=2, padding=1)
        residual = ConvNorm(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(x, train=train)
        residual = ConvNorm(self.features, relu=False, dtype=self.dtype, name="conv2")(residual, train=train)
        missing = self.features - x.shape[-1]
        if self.stride == 1 and missing == 0:
            shortcut = x.astype(residual.dtype)
        elif self.shortcut == "padding":
            x = x[:, :: self.stride, :: self.stride].astype(residual.dtype)
            shortcut = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        else:
            shortcut = ConvNorm(
                self.features,
                kernel_size=1,
                stride=self.stride,
                relu=False,
                dtype=self.dtype,
                name="projection",
            )(x, train=train)
        return nn.relu(residual + shortcut) if self.relu else residual + shortcut


def resnet(
    depth: int,
    *,
    classes: int,
    widths: tuple[int, int, int, int] = (16, 16, 32, 64),
    shortcut: str = "projection",
    dtype: DType = None,
) -> Network:
    """The CIFAR ResNet of a given depth, for images of 8x8 to 96x96 and larger.

    Args:
        depth: 6n+2 with n >= 1 blocks per stage: 8, 14, 20, 32, 44, 56, 110, 1202, ...
        classes: number of logits, at least 1.
        widths: channels of the stem and of the three stages.
        shortcut: `projection` or `padding`, see `BasicBlock`.
        dtype: compute dtype; parameters stay float32. None computes in the common type of images and parameters.

    Raises:
        ValueError: an argument is out of range.
    """
    if depth < 8 or (depth - 2) % 6:
        lower = max(8, (depth - 2) // 6 * 6 + 2)
        raise ValueError(
            f"no CIFAR ResNet of depth {depth}: use 6n+2 (8, 14, 20, 32, 44, 56, 110, ...); the nearest are "
            f"{lower} and {lower + 6}"
        )
    check_classes(classes)
    if len(widths) != 4 or min(widths) < 1:
        raise ValueError(f"widths is {widths}: use four positive numbers, for the stem and the three stages")
    if shortcut not in SHORTCUTS:
        raise unknown("shortcut", shortcut, SHORTCUTS)
    blocks: dict[str, nn.Module] = {"stem": Stem(widths[0], dtype=dtype)}
    for stage, features in enumerate(widths[1:], start=1):
        for index in range((depth - 2) // 6):
            stride = 2 if stage > 1 and index == 0 else 1
            blocks[f"stage{stage}/{index}"] = BasicBlock(features, stride, shortcut, dtype)
    blocks["head"] = Classifier(classes, dtype=dtype)
    return Network.of(blocks)
