"""The weight of a distillation term in the first epochs."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def warmup(epoch: Float[Array, ""], epochs: float | int) -> Float[Array, ""]:
    """min(epoch / epochs, 1), the epoch counted from 1; with 0 epochs, 1.

    Reference: the mdistiller code, for DKD (Zhao et al., CVPR 2022) and ReviewKD (Chen et al., CVPR 2021).
    """
    return jnp.minimum(epoch / epochs, 1) if epochs else jnp.ones_like(epoch)
