"""OFA's exits: trained networks that compute logits from a student's features after a stage.

A student of convolutions has exits of separable convolutions. A transformer, or another network that mixes patches
(`Network.is_transformer`), has exits that merge patches and end in transformer blocks.

Reference: Hao et al., "One-for-all: bridge the gap between heterogeneous architectures in knowledge distillation"
(NeurIPS 2023), section 3.2, with the layers and the initialisation of its code.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.tokens import grid_of, join_tokens, split_tokens
from kd_local.models.convolution import Conv
from kd_local.models.layers import ConvNorm, global_average_pool
from kd_local.models.vision_transformer import LayerNorm, attend
from kd_local.networks import Network

GRID = 7
"""Patches are merged while the smaller side of their grid has at least twice this number."""
HEADS = 4
_EPSILON = 1e-5
# PyTorch's `trunc_normal_` cuts at -2 and 2, 100 standard deviations away.
_NORMAL = nn.initializers.normal(0.02)


class SeparableBlock(nn.Module):
    """Twice a depthwise 3x3 and a pointwise convolution without bias, batch normalisation and ReLU.

    The first depthwise convolution has stride 2, and the second pointwise one changes the channels to `features`.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h2 w2 k"]:
        channels = x.shape[-1]
        for i, (stride, features) in enumerate(((2, channels), (1, self.features))):
            x = Conv(channels, stride=stride, groups=channels, dtype=x.dtype, name=f"depthwise{i}")(x)
            x = ConvNorm(features, kernel_size=1, dtype=x.dtype, name=f"pointwise{i}")(x, train=train)
        return x


class MapExit(nn.Module):
    """`SeparableBlock`s, then global average pooling and a linear layer.

    Each block doubles the channels, but the last one gives `width`. Without blocks, a 1x1 convolution with bias does.

    Attributes:
        blocks: number of blocks; each halves the resolution.
        width: channels before the linear layer.
        classes: number of logits.
    """

    blocks: int
    width: int
    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        channels = [x.shape[-1] * 2**i for i in range(1, self.blocks)]
        for i, features in enumerate([*channels, self.width][: self.blocks]):
            x = SeparableBlock(features, name=f"block{i}")(x, train=train)
        if not self.blocks:
            zeros = nn.initializers.zeros
            x = Conv(self.width, kernel_size=1, use_bias=True, bias_init=zeros, dtype=x.dtype, name="conv")(x)
        return _linear(self.classes, x.dtype, "linear")(global_average_pool(x))


class PatchMerging(nn.Module):
    """Layer normalisation and a linear layer without bias of each 2x2 neighbours, which are concatenated by columns.

    Attributes:
        features: channels of the output.
        gelu: True for a GELU at the end.
    """

    features: int
    gelu: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 k"]:
        x = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        x = LayerNorm(_EPSILON, name="norm")(x)
        x = _linear(self.features, x.dtype, "reduction", use_bias=False)(x)
        return nn.gelu(x, approximate=False) if self.gelu else x


class ExitBlock(nn.Module):
    """A pre-norm transformer block with 4 heads. Query, key and value have no bias; GELU is exact."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch 1 n c"]) -> Float[Array, "batch 1 n c"]:
        channels = x.shape[-1]
        y = _linear(3 * channels, x.dtype, "qkv", use_bias=False)(LayerNorm(_EPSILON, name="norm1")(x)[:, 0])
        of_heads = y.reshape(*y.shape[:2], 3, HEADS, channels // HEADS)
        y = attend(of_heads[:, :, 0], of_heads[:, :, 1], of_heads[:, :, 2]).reshape(x.shape)
        x = x + _linear(channels, x.dtype, "projection")(y)
        y = _linear(4 * channels, x.dtype, "linear1")(LayerNorm(_EPSILON, name="norm2")(x))
        return x + _linear(channels, x.dtype, "linear2")(nn.gelu(y, approximate=False))


class TokenExit(nn.Module):
    """Merging of patches, transformer blocks, then a linear layer of the class token, or of the mean of the patches.

    Class tokens pass beside the merging. After several mergings there is no GELU after the last.

    Attributes:
        merges: number of `PatchMerging`s.
        blocks: number of `ExitBlock`s.
        width: channels after merging.
        classes: number of logits.
        class_tokens: 0 or 1.
    """

    merges: int
    blocks: int
    width: int
    classes: int
    class_tokens: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        tokens, x = split_tokens(x, self.class_tokens)
        for i in range(self.merges):
            x = PatchMerging(self.width, gelu=i == 0 or i < self.merges - 1, name=f"merging{i}")(x)
        x = join_tokens(tokens, x)
        for i in range(self.blocks):
            x = ExitBlock(name=f"block{i}")(x)
        return _linear(self.classes, x.dtype, "linear")(x[:, 0, 0] if self.class_tokens else x[:, 0].mean(axis=1))


def exit_after(
    student: Network, shape: tuple[int, ...], *, behind: int, width: int, classes: int
) -> MapExit | TokenExit:
    """The exit after a stage of a student.

    A student of convolutions has as many blocks in the exit as stages behind it. A transformer has at least one, and
    merges patches n times, n = floor(log2(g / 7)) for the smaller side g of the grid of patches: 14x14 and 28x28 become
    7x7, as published, and 16x16 becomes 8x8. Grids smaller than 14, such as 8x8 or 4x4, are not merged.

    Args:
        student: the network.
        shape: of the features, (batch, h, w, c), or (batch, 1, class tokens + patches, c).
        behind: number of stages of the student behind this one.
        width: channels before the linear layer.
        classes: number of logits.

    Raises:
        ValueError: patches cannot be merged, or the channels do not fit.
    """
    if not student.is_transformer:
        return MapExit(behind, width, classes)
    height, columns = grid_of(shape, student.class_tokens)
    merges = max((min(height, columns) // GRID).bit_length() - 1, 0)
    if height % 2**merges or columns % 2**merges:
        raise ValueError(
            f"a grid of {height}x{columns} patches cannot be merged by 2x2 {merges} times: use images, or a patch "
            f"size, that give multiples of {2**merges}, such as {GRID * 2**merges}x{GRID * 2**merges}"
        )
    final = width if merges else shape[-1]
    if final % HEADS or (student.class_tokens and shape[-1] != final):
        raise ValueError(
            f"features of {shape[-1]} channels and {student.class_tokens} class token(s) for blocks of {final}: the "
            f"exit's blocks need a multiple of {HEADS} channels, which class tokens already have"
        )
    if student.class_tokens > 1:
        raise ValueError(f"{student.class_tokens} class tokens: the exits of OFA take 0 or 1; use another student")
    return TokenExit(merges, max(behind, 1), width, classes, student.class_tokens)


def _linear(features: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=_NORMAL, name=name)
