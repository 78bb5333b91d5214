"""Vision transformers: patches, pre-norm encoder blocks of constant resolution and width, pooling and a linear head.

The features between blocks are maps (batch, h / patch, w / patch, channels) without a class token. Local heads,
contexts and connectors work on them as on a ResNet's features. Positions are fixed sines and cosines, as in the
reference: no parameters depend on the image size.

A transformer has no stages. Here the blocks are divided into four stages of equal length, because an ImageNet ResNet
has four stages too. Block-KD then pairs equal fractions of the depth. Two or four modules with equal numbers of layers
end where stages end.

The image as a context is expensive: at 224x224 the full encoder of one boundary of S/16 needs 2.1 billion
multiply-adds, and the network 4.6 billion. With `image_encoder="pooled"` the encoder needs 0.01 billion.

Reference: Dosovitskiy et al., "An image is worth 16x16 words" (arXiv 2010.11929), with the changes of Beyer, Zhai and
Kolesnikov, "Better plain ViT baselines for ImageNet-1k" (arXiv 2205.01580): mean over the map, fixed positions, and a
single linear layer in the head. Initialisation, order of the positions and GELU with tanh follow the authors' code,
big_vision.

Not optimal yet: without rematerialisation the attention weights are stored for the backward pass. These are
heads * (h * w / patch^2)^2 numbers per image and block. The gradient of Ti/16 for 64 images of 224x224 needs 3938 MiB
on a CPU, and 820 MiB with rematerialised blocks.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import dtypes
from jaxtyping import Array, Float

from kd_local.models.convolution import conv2d
from kd_local.models.ends import check_classes
from kd_local.models.layers import DType, global_average_pool
from kd_local.networks import Network
from kd_local.precision import at_least_float32

STAGES = 4
_XAVIER = nn.initializers.xavier_uniform()
_TINY = nn.initializers.normal(1e-6)


class LayerNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, with mean and variance over the channels of each position.

    Mean and variance are computed in float32, or in the input's dtype if it is wider. Parameters are float32 after
    `init`, and keep their dtype.

    Reference: Ba, Kiros and Hinton, "Layer normalization" (arXiv 1607.06450).
    """

    epsilon: float = 1e-6
    dtype: DType = None

    # Flax's LayerNorm mixes dtypes if the input is not float32, an error with strict dtype promotion.
    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        wide = at_least_float32(x.dtype)
        centred = x.astype(wide) - x.astype(wide).mean(axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + self.epsilon)
        scale, bias = (parameter.astype(wide).reshape(1, 1, 1, -1) for parameter in (scale, bias))
        return (centred * inverse * scale + bias).astype(self.dtype or x.dtype)


def positions(height: int, width: int, channels: int) -> Float[np.ndarray, "h w c"]:
    """The encoding of each position (y, x) of a map, in float64.

    The channels are the sines of x, the cosines of x, the sines of y and the cosines of y. Each of the four has
    n = channels / 4 frequencies 10000^(-i / (n - 1)), i = 0, ..., n - 1.

    Reference: Chen, Xie and He (MoCo v3, arXiv 2104.02057), in the order of Beyer et al. (arXiv 2205.01580).

    Raises:
        ValueError: `channels` is not a multiple of 4, or less than 8.
    """
    _check_width(channels)
    frequencies = 10_000.0 ** -np.linspace(0, 1, channels // 4)
    along_y, along_x = (np.arange(size)[:, None] * frequencies for size in (height, width))
    rows, columns = (np.concatenate([np.sin(angle), np.cos(angle)], axis=1) for angle in (along_y, along_x))
    shape = (height, width, channels // 2)
    return np.concatenate([np.broadcast_to(columns, shape), np.broadcast_to(rows[:, None], shape)], axis=2)


class PatchEmbedding(nn.Module):
    """Stem: a convolution with its size as stride, plus the encoding of the positions.

    Raises:
        ValueError: the height or width of the images is not a multiple of the patch size.
    """

    features: int
    patch_size: int = 16
    dtype: DType = None
    layers: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        patch = self.patch_size
        check_patches(x.shape[1], x.shape[2], patch)
        shape = (patch, patch, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv2d(x, kernel, stride=patch, padding=0) + bias.reshape(1, 1, 1, -1)
        return y + jnp.asarray(positions(y.shape[1], y.shape[2], self.features), y.dtype)[None]


def check_patches(height: int, width: int, patch: int) -> None:
    """Raises ValueError unless images of this size divide into patches."""
    if height % patch or width % patch:
        near = "x".join(str(max(1, size // patch) * patch) for size in (height, width))
        raise ValueError(
            f"images of {height}x{width} do not divide into patches of {patch}x{patch}: crop or resize them to "
            f"multiples of {patch}, such as {near}, or use another patch_size"
        )


def attend(
    query: Float[Array, "batch queries heads c"],
    key: Float[Array, "batch keys heads c"],
    value: Float[Array, "batch keys heads c"],
) -> Float[Array, "batch queries heads c"]:
    """softmax(Q K^T / sqrt(c)) V for each head. The softmax is computed in float32, or in the input's dtype if wider.

    Reference: Vaswani et al., "Attention is all you need" (arXiv 1706.03762), equation 1.
    """
    scores = jnp.einsum("nqhc,nkhc->nhqk", query * query.shape[-1] ** -0.5, key)
    # Flax's function computes the softmax in bfloat16 for bfloat16 inputs, or in float32 for float64 inputs.
    weights = jax.nn.softmax(scores.astype(at_least_float32(scores.dtype))).astype(value.dtype)
    return jnp.einsum("nhqk,nkhc->nqhc", weights, value)


class EncoderBlock(nn.Module):
    """Self-attention over all positions of the map, then two linear layers with GELU and 4 times the channels between.

    Both steps start with a layer normalisation and have a shortcut. The output has no ReLU.

    Attributes:
        heads: number of attention heads.
        dtype: compute dtype.
        exact_gelu: True for GELU with the error function, as in PyTorch; False for its approximation with tanh, as in
            big_vision.
    """

    heads: int
    dtype: DType = None
    exact_gelu: bool = False
    # Query, key and value are parallel and count as one layer.
    layers: ClassVar[int] = 4
    mixes_patches: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w c"]:
        batch, height, width, channels = x.shape
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, kernel_init=_XAVIER, attention_fn=attend, name="attention"
        )
        y = attention(y.reshape(batch, height * width, channels)).reshape(x.shape)
        x = x.astype(y.dtype) + y
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(4 * channels, dtype=self.dtype, kernel_init=_XAVIER, bias_init=_TINY, name="linear1")(y)
        y = nn.gelu(y, approximate=not self.exact_gelu)
        y = nn.Dense(channels, dtype=self.dtype, kernel_init=_XAVIER, bias_init=_TINY, name="linear2")(y)
        return x + y


class NormalisedLinear(nn.Module):
    """A head that ends in layer normalisation, the choice or mean of positions, and a linear layer that starts at zero.

    A subclass defines `pool`.
    """

    classes: int
    dtype: DType = None
    layers: ClassVar[int] = 1

    def setup(self) -> None:
        self.norm = LayerNorm(dtype=self.dtype)
        self.linear = nn.Dense(self.classes, dtype=self.dtype, kernel_init=nn.initializers.zeros)

    def pool(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch c"]:
        """The pooled features, the input of the linear layer."""
        raise NotImplementedError

    def classify(self, pooled: Float[Array, "batch c"]) -> Float[Array, "batch k"]:
        """The logits for features from `pool`."""
        return self.linear(pooled)

    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        return self.classify(self.pool(x, train=train))


class LayerNormClassifier(NormalisedLinear):
    """Head: layer normalisation, global average pooling and a linear layer that starts at zero. Returns the logits."""

    def before_pooling(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w c"]:
        """The map whose mean over height and width is the result of `pool`."""
        return self.norm(x)

    def pool(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch c"]:
        """The pooled features, the input of the linear layer."""
        return global_average_pool(self.before_pooling(x, train=train))


def vision_transformer(
    *, classes: int, width: int, heads: int, depth: int = 12, patch_size: int = 16, dtype: DType = None
) -> Network:
    """The vision transformer of a given width, for images whose height and width are multiples of the patch size.

    Args:
        classes: number of logits, at least 1.
        width: channels, such as 192 (Ti), 384 (S) or 768 (B): a multiple of 4 and of `heads`, at least 8.
        heads: attention heads, such as 3 (Ti), 6 (S) or 12 (B).
        depth: number of encoder blocks: a multiple of 4, so that the four stages have equal numbers.
        patch_size: height and width of a patch, in pixels.
        dtype: compute dtype; parameters stay float32, statistics and softmax have at least float32. None computes in
            the common type of images and parameters.

    Raises:
        ValueError: an argument is out of range.
    """
    check_classes(classes)
    _check_width(width)
    check_sizes(classes=classes, width=width, heads=heads, depth=depth, patch_size=patch_size)
    stem, head = PatchEmbedding(width, patch_size, dtype), LayerNormClassifier(classes, dtype)
    return in_four_stages(stem, EncoderBlock(heads, dtype), head, depth)


def in_four_stages(stem: nn.Module, block: nn.Module, head: nn.Module, depth: int) -> Network:
    """A network of equal blocks in four stages, between a stem and a head."""
    blocks = {f"stage{stage}/{i}": block for stage in range(1, STAGES + 1) for i in range(depth // STAGES)}
    return Network.of({"stem": stem, **blocks, "head": head})


def check_sizes(*, classes: int, width: int, heads: int, depth: int, patch_size: int) -> None:
    """Raises ValueError unless a transformer can have these sizes."""
    check_classes(classes)
    if heads < 1 or width % heads:
        raise ValueError(f"heads is {heads}: use a positive divisor of the width {width}, such as one for 64 channels")
    if depth < STAGES or depth % STAGES:
        lower = max(STAGES, depth // STAGES * STAGES)
        raise ValueError(
            f"depth is {depth}: use a multiple of the {STAGES} stages, such as {lower} or {lower + STAGES}"
        )
    if patch_size < 1:
        raise ValueError(f"patch_size is {patch_size}: use 1 or more, such as 16 for images of 224x224")


def _check_width(width: int) -> None:
    """Raises ValueError unless the channels divide into sines and cosines of x and y with at least two frequencies."""
    if width < 8 or width % 4:
        lower = max(8, width // 4 * 4)
        raise ValueError(f"width is {width}: use a multiple of 4, at least 8, such as {lower} or {lower + 4}")
