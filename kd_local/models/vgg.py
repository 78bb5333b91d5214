"""VGG with batch normalisation, with one block per convolution: for small images and for ImageNet.

The pooling between two stages is the first layer of the second stage. As usual for small images, the head has global
average pooling and one linear layer. The form for ImageNet has the paper's three linear layers.

Reference: Simonyan and Zisserman, "Very deep convolutional networks" (arXiv 1409.1556), table 1, A, B, D and E. VGG-8:
Tian et al., "Contrastive representation distillation" (arXiv 1910.10699), section 6.1.
"""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.errors import unknown
from kd_local.models.ends import Classifier, check_classes
from kd_local.models.layers import ConvNorm, DType, Linear, average_pool_to, max_pool
from kd_local.networks import Network

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
# The last stage has a resolution of 4x4 for images of 32x32 (no pooling before it) and of 64x64 (with pooling).
_POOL_FROM = (None, 2, 2, 2, 8)
_HIDDEN = 4096
_MAP = (7, 7)


class ConvBlock(nn.Module):
    """3x3 convolution with bias, batch normalisation, ReLU.

    2x2 maximum pooling comes first if the input has a size of `pool_from` or larger (None: never).
    """

    features: int
    pool_from: int | None = None
    dtype: DType = None
    relu: bool = True
    layers: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        if self.pool_from is not None and min(x.shape[1:3]) >= self.pool_from:
            x = max_pool(x, 2, stride=2)
        return ConvNorm(self.features, use_bias=True, relu=self.relu, dtype=self.dtype, name="conv")(x, train=train)


class ThreeLinearClassifier(nn.Module):
    """Head: 2x2 maximum pooling, average pooling to 7x7, two hidden layers with ReLU and a linear layer.

    Returns the logits. The published head has dropout in training, which is left out here.
    """

    classes: int
    hidden: int = _HIDDEN
    dtype: DType = None
    layers: ClassVar[int] = 3

    def setup(self) -> None:
        self.hidden1 = Linear(self.hidden, dtype=self.dtype)
        self.hidden2 = Linear(self.hidden, dtype=self.dtype)
        self.linear = Linear(self.classes, dtype=self.dtype)

    def pool(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch hidden"]:
        """The second hidden layer, the input of the linear layer."""
        x = average_pool_to(max_pool(x, 2, stride=2), _MAP)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # the order of the weights in PyTorch
        return nn.relu(self.hidden2(nn.relu(self.hidden1(x))))

    def classify(self, pooled: Float[Array, "batch hidden"]) -> Float[Array, "batch k"]:
        """The logits for features from `pool`."""
        return self.linear(pooled)

    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        return self.classify(self.pool(x, train=train))


def vgg(depth: int, *, classes: int, small_images: bool = True, hidden: int = _HIDDEN, dtype: DType = None) -> Network:
    """The VGG of a given depth. Stages 0 to 4 have 64 to 512 channels.

    Args:
        depth: 8, 11, 13, 16 or 19: the number of layers of the published network, with its three linear layers.
        classes: number of logits, at least 1.
        small_images: if True (images of 2x2 to 96x96 and larger), the head has one linear layer. If False (224x224 and
            other images of at least 32x32), it has three linear layers after pooling.
        hidden: units of the first two of the three linear layers.
        dtype: compute dtype; parameters stay float32. None computes in the common type of images and parameters.

    Raises:
        ValueError: an argument is out of range.
    """
    if depth not in _CONVOLUTIONS:
        raise unknown("depth of VGG", depth, map(str, _CONVOLUTIONS))
    check_classes(classes)
    blocks: dict[str, nn.Module] = {}
    for stage, (features, convolutions) in enumerate(zip(_WIDTHS, _CONVOLUTIONS[depth], strict=True)):
        for index in range(convolutions):
            pool_from = _POOL_FROM[stage] if small_images else 2 if stage else None
            blocks[f"stage{stage}/{index}"] = ConvBlock(features, None if index else pool_from, dtype)
    blocks["head"] = Classifier(classes, dtype=dtype) if small_images else ThreeLinearClassifier(classes, hidden, dtype)
    return Network.of(blocks)
