"""The precision of sums over many numbers."""

from typing import Any

import jax.numpy as jnp


def at_least_float32(dtype: Any) -> Any:
    """The given floating dtype if it has more than 32 bits, otherwise float32.

    >>> at_least_float32(jnp.bfloat16).__name__, at_least_float32(jnp.float64).__name__
    ('float32', 'float64')
    """
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32
