"""The precision in which sums over many numbers are taken."""

from typing import Any

import jax.numpy as jnp


def at_least_float32(dtype: Any) -> Any:
    """The dtype itself where it is wider than float32, and else float32."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32
