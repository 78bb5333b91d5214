"""Vision transformers with a class token and learned positions, as in torchvision, timm and DeiT.

The features between blocks are sequences (batch, 1, 1 + patches, channels) with the class token first. They are not
maps, so local heads and contexts cannot use them. Objectives that accept tokens (`Objective.takes_tokens`) can. The
features of `vision_transformer` are maps.

Reference: Dosovitskiy et al., "An image is worth 16x16 words" (arXiv 2010.11929), table 1.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import dtypes
from jaxtyping import Array, Float

from kd_local.models.convolution import conv2d
from kd_local.models.layers import DType
from kd_local.models.vision_transformer import (
    EncoderBlock,
    NormalisedLinear,
    check_patches,
    check_sizes,
    in_four_stages,
)
from kd_local.networks import Network


class TokenEmbedding(nn.Module):
    """Stem: a convolution with its size as stride, a class token before the patches, plus learned positions.

    The images at `init` determine the number of positions.

    Raises:
        ValueError: the height or width of the images is not a multiple of the patch size.
    """

    features: int
    patch_size: int = 16
    dtype: DType = None
    layers: ClassVar[int] = 1
    maps: ClassVar[bool] = False
    class_tokens: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch 1 tokens k"]:
        patch = self.patch_size
        check_patches(x.shape[1], x.shape[2], patch)
        shape = (patch, patch, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv2d(x, kernel, stride=patch, padding=0) + bias.reshape(1, 1, 1, -1)
        batch, tokens = y.shape[0], y.shape[1] * y.shape[2]
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.features), jnp.float32)
        of_tokens = (1, 1 + tokens, self.features)
        positions = self.param("positions", nn.initializers.normal(0.02), of_tokens, jnp.float32)
        first = jnp.broadcast_to(token.astype(y.dtype), (batch, 1, self.features))
        y = jnp.concatenate([first, y.reshape(batch, tokens, self.features)], axis=1)
        return (y + positions.astype(y.dtype))[:, None]


class TokenClassifier(NormalisedLinear):
    """Head: layer normalisation of the class token and a linear layer that starts at zero. Returns the logits."""

    def pool(self, x: Float[Array, "batch 1 tokens c"], *, train: bool) -> Float[Array, "batch c"]:
        """The normalised class token, the input of the linear layer."""
        return self.norm(x[:, :, :1])[:, 0, 0]


def class_token_transformer(
    *, classes: int, width: int, heads: int, depth: int = 12, patch_size: int = 16, dtype: DType = None
) -> Network:
    """The vision transformer of a given width with a class token, for images of the size given to `init`.

    The arguments are those of `vision_transformer`, but the width may be any multiple of `heads`.

    Raises:
        ValueError: an argument is out of range.
    """
    check_sizes(classes=classes, width=width, heads=heads, depth=depth, patch_size=patch_size)
    stem, head = TokenEmbedding(width, patch_size, dtype), TokenClassifier(classes, dtype)
    return in_four_stages(stem, EncoderBlock(heads, dtype, exact_gelu=True), head, depth)
