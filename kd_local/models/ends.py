"""First and last blocks that families share: stems and heads. A head has two steps, `pool` and `classify`.

Distillation reads the pooled features between the two steps. A head whose `pool` is a mean over height and width has a
method `before_pooling`, which returns the map. If layers come before a ReLU that ends this map, their output is the
result of `before_relu`, and `rectify` is the ReLU. A block that ends in ReLU (not ReLU6) has a field `relu`:
`block.clone(relu=False)` has the same parameters and returns the input of this ReLU.
"""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.models.layers import ConvNorm, DType, Linear, global_average_pool


class Stem(nn.Module):
    """Stem: convolution, batch normalisation, ReLU."""

    features: int
    dtype: DType = None
    kernel_size: int = 3
    stride: int = 1
    relu: bool = True
    layers: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        return ConvNorm(
            self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            relu=self.relu,
            dtype=self.dtype,
            name="conv",
        )(x, train=train)


class Classifier(nn.Module):
    """Head: global average pooling and a linear layer. Returns the logits."""

    classes: int
    dtype: DType = None
    layers: ClassVar[int] = 1

    def setup(self) -> None:
        self.linear = Linear(self.classes, dtype=self.dtype)

    def before_pooling(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w c"]:
        """The map whose mean over height and width is the result of `pool`."""
        return x

    def pool(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch c"]:
        """The pooled features, the input of the linear layer."""
        return global_average_pool(self.before_pooling(x, train=train))

    def classify(self, pooled: Float[Array, "batch c"]) -> Float[Array, "batch k"]:
        """The logits for features from `pool`."""
        return self.linear(pooled)

    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        return self.classify(self.pool(x, train=train))


class ConvClassifier(nn.Module):
    """Head: 1x1 convolution, batch normalisation, ReLU, global average pooling, linear layer. Returns the logits."""

    classes: int
    features: int
    relu6: bool = False
    dtype: DType = None
    layers: ClassVar[int] = 2

    def setup(self) -> None:
        self.conv = ConvNorm(self.features, kernel_size=1, relu=False, dtype=self.dtype)
        self.linear = Linear(self.classes, dtype=self.dtype)

    def before_relu(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w features"]:
        """The input of the ReLU."""
        return self.conv(x, train=train)

    def rectify(self, x: Float[Array, "batch h w features"]) -> Float[Array, "batch h w features"]:
        """The ReLU or ReLU6."""
        return nn.relu6(x) if self.relu6 else nn.relu(x)

    def before_pooling(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w features"]:
        """The map whose mean over height and width is the result of `pool`."""
        return self.rectify(self.before_relu(x, train=train))

    def pool(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch features"]:
        """The pooled features, the input of the linear layer."""
        return global_average_pool(self.before_pooling(x, train=train))

    def classify(self, pooled: Float[Array, "batch features"]) -> Float[Array, "batch k"]:
        """The logits for features from `pool`."""
        return self.linear(pooled)

    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        return self.classify(self.pool(x, train=train))


def check_classes(classes: int) -> None:
    """Raises ValueError unless there is at least one class."""
    if classes < 1:
        raise ValueError(f"classes is {classes}: use 1 or more")
