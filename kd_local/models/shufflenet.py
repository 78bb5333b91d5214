"""ShuffleNets, versions 1 and 2, for small images: a 1x1 stem and three stages that halve the resolution.

Version 2 also has a form for ImageNet, whose stem and maximum pooling halve the resolution twice before the stages.

Reference: Zhang et al., "ShuffleNet" (arXiv 1707.01083), table 1 (3 groups); Ma et al., "ShuffleNet V2" (arXiv
1807.11164), table 5. Forms for small images: Tian et al., arXiv 1910.10699.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.errors import unknown
from kd_local.models.ends import Classifier, ConvClassifier, Stem, check_classes
from kd_local.models.layers import ConvNorm, DType, average_pool, max_pool
from kd_local.networks import Network

_GROUPS = 3


def shuffle(x: Float[Array, "batch h w c"], groups: int) -> Float[Array, "batch h w c"]:
    """Interleaves the channels of `groups` groups: the first channel of each, then the second channel of each, ..."""
    return x.reshape(*x.shape[:3], groups, -1).swapaxes(3, 4).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """Unit of version 1: grouped 1x1 convolution, shuffle, depthwise 3x3 and grouped 1x1 convolutions.

    The result is added to the input or, with stride 2, concatenated with the input's 3x3 average.
    """

    features: int
    stride: int = 1
    first_groups: int = _GROUPS
    dtype: DType = None
    relu: bool = True
    copies: ClassVar[bool] = False
    layers: ClassVar[int] = 3

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        features = self.features if self.stride == 1 else self.features - x.shape[-1]
        inner, dtype = features // 4, self.dtype
        y = ConvNorm(inner, kernel_size=1, groups=self.first_groups, dtype=dtype, name="conv1")(x, train=train)
        y = shuffle(y, self.first_groups)
        y = ConvNorm(inner, stride=self.stride, groups=inner, dtype=dtype, name="conv2")(y, train=train)
        last = ConvNorm(features, kernel_size=1, groups=_GROUPS, relu=False, dtype=dtype, name="conv3")
        y = last(y, train=train)
        x = x.astype(y.dtype)
        y = y + x if self.stride == 1 else jnp.concatenate([y, average_pool(x, 3, stride=2, padding=1)], axis=3)
        return nn.relu(y) if self.relu else y


class SplitUnit(nn.Module):
    """Unit of version 2: 1x1, depthwise 3x3 and 1x1 convolutions of half of the channels; the rest is unchanged."""

    features: int
    dtype: DType = None
    relu: bool = True
    copies: ClassVar[bool] = False
    layers: ClassVar[int] = 3

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w c"]:
        half, dtype = self.features // 2, self.dtype
        kept, y = x[..., :half], x[..., half:]
        y = ConvNorm(half, kernel_size=1, dtype=dtype, name="conv1")(y, train=train)
        y = ConvNorm(half, groups=half, relu=False, dtype=dtype, name="conv2")(y, train=train)
        y = ConvNorm(half, kernel_size=1, relu=self.relu, dtype=dtype, name="conv3")(y, train=train)
        return shuffle(jnp.concatenate([kept.astype(y.dtype), y], axis=3), 2)


class DownUnit(nn.Module):
    """Unit of version 2 with stride 2: concatenates the branches (depthwise 3x3, 1x1) and (1x1, depthwise 3x3, 1x1).

    With `pool_first`, 3x3 maximum pooling comes first.
    """

    features: int
    dtype: DType = None
    relu: bool = True
    pool_first: bool = False
    copies: ClassVar[bool] = False
    layers: ClassVar[int] = 3

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        if self.pool_first:
            x = max_pool(x, 3, stride=2, padding=1)
        half, channels, dtype = self.features // 2, x.shape[-1], self.dtype
        left = ConvNorm(channels, stride=2, groups=channels, relu=False, dtype=dtype, name="conv1")(x, train=train)
        left = ConvNorm(half, kernel_size=1, relu=self.relu, dtype=dtype, name="conv2")(left, train=train)
        right = ConvNorm(half, kernel_size=1, dtype=dtype, name="conv3")(x, train=train)
        right = ConvNorm(half, stride=2, groups=half, relu=False, dtype=dtype, name="conv4")(right, train=train)
        right = ConvNorm(half, kernel_size=1, relu=self.relu, dtype=dtype, name="conv5")(right, train=train)
        return shuffle(jnp.concatenate([left, right], axis=3), 2)


def shufflenetv1(*, classes: int, dtype: DType = None) -> Network:
    """ShuffleNet with 3 groups, for images of 8x8 to 96x96.

    Args:
        classes: number of logits, at least 1.
        dtype: compute dtype; parameters stay float32. None computes in the common type of images and parameters.

    Raises:
        ValueError: `classes` is out of range.
    """
    check_classes(classes)
    blocks: dict[str, nn.Module] = {"stem": Stem(24, kernel_size=1, dtype=dtype)}
    for stage, (features, units) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for index in range(units):
            # The first unit reads the few channels of the stem and is not grouped.
            groups = 1 if stage == 1 and index == 0 else _GROUPS
            blocks[f"stage{stage}/{index}"] = ShuffleUnit(features, 1 if index else 2, groups, dtype)
    blocks["head"] = Classifier(classes, dtype=dtype)
    return Network.of(blocks)


_V2_FEATURES = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024),
                2.0: (244, 488, 976, 2048)}  # fmt: skip


def shufflenetv2(*, classes: int, width: float = 1.0, small_images: bool = True, dtype: DType = None) -> Network:
    """ShuffleNetV2. The last 1x1 convolution belongs to the head.

    Args:
        classes: number of logits, at least 1.
        width: 0.5, 1, 1.5 or 2, the size of the network.
        small_images: if True (images of 8x8 to 96x96), the stem is a 1x1 convolution. If False (224x224), the stem is a
            3x3 convolution with stride 2, and maximum pooling follows.
        dtype: compute dtype; parameters stay float32. None computes in the common type of images and parameters.

    Raises:
        ValueError: an argument is out of range.
    """
    check_classes(classes)
    if width not in _V2_FEATURES:
        raise unknown("width of ShuffleNetV2", width, map(str, _V2_FEATURES))
    *features, last = _V2_FEATURES[width]
    stem = Stem(24, kernel_size=1, dtype=dtype) if small_images else Stem(24, stride=2, dtype=dtype)
    blocks: dict[str, nn.Module] = {"stem": stem}
    for stage, (channels, units) in enumerate(zip(features, (4, 8, 4), strict=True), start=1):
        for index in range(units):
            pool_first = stage == 1 and not small_images
            unit = SplitUnit(channels, dtype) if index else DownUnit(channels, dtype, pool_first=pool_first)
            blocks[f"stage{stage}/{index}"] = unit
    blocks["head"] = ConvClassifier(classes, last, dtype=dtype)
    return Network.of(blocks)
