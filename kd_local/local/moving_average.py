"""A moving average of parameters, which no optimizer updates: MAN and MLAAN."""

from typing import Any

import jax
from jaxtyping import Array, Float


def moving_average(average: Any, source: Any, momentum: Float[Array, ""]) -> Any:
    """m average + (1 - m) source, for each array.

    Args:
        average: a pytree of floating-point arrays.
        source: a pytree of the same structure and shapes, such as the parameters of a block.
        momentum: m, in [0, 1]; converted to the dtype of each array.
    """

    def moved(average: Array, source: Array) -> Array:
        kept = momentum.astype(average.dtype)
        return kept * average + (1 - kept) * source

    return jax.tree.map(moved, average, source)
