"""Sequences of class tokens and patches, (batch, 1, class tokens + patches, channels), and maps of their patches."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def grid_of(shape: tuple[int, ...], class_tokens: int) -> tuple[int, int]:
    """(height, width) of the patches in features of this shape, (..., h, w, c) or (..., 1, tokens, c).

    >>> grid_of((8, 1, 197, 192), class_tokens=1), grid_of((8, 4, 6, 192), class_tokens=0)
    ((14, 14), (4, 6))

    Args:
        shape: of the features; the first axes do not matter.
        class_tokens: the number of class tokens; 0 for a map.

    Raises:
        ValueError: the patches of a sequence form no square.
    """
    height, width = shape[-3:-1]
    if not class_tokens:
        return height, width
    patches = width - class_tokens
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise ValueError(
            f"{patches} patches after {class_tokens} class token(s) form no square, and a sequence does not have their "
            "height and width: use square images"
        )
    return side, side


def split_tokens(
    x: Float[Array, "batch h w c"], class_tokens: int
) -> tuple[Float[Array, "batch 1 tokens c"], Float[Array, "batch h2 w2 c"]]:
    """`(class tokens, map of the patches)`. Without class tokens the map is `x`.

    Raises:
        ValueError: see `grid_of`.
    """
    if not class_tokens:
        return jnp.zeros((x.shape[0], 1, 0, x.shape[3]), x.dtype), x
    patches = x[:, 0, class_tokens:].reshape(x.shape[0], *grid_of(x.shape, class_tokens), x.shape[3])
    return x[:, :, :class_tokens], patches


def join_tokens(
    tokens: Float[Array, "batch 1 tokens c"], x: Float[Array, "batch h w c"]
) -> Float[Array, "batch 1 n c"]:
    """The sequence of the class tokens and of the map's patches, row after row: the inverse of `split_tokens`."""
    return jnp.concatenate([tokens, x.reshape(x.shape[0], 1, -1, x.shape[3])], axis=2)
