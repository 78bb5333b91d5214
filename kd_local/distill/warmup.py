"""Weights that grow over the first epochs."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def warmup(epoch: Float[Array, ""], epochs: float | int) -> Float[Array, ""]:
    """min(epoch / epochs, 1), with the epoch counted from 1; 1 if `epochs` is 0.

    Reference: the mdistiller code, for DKD (Zhao et al., CVPR 2022) and ReviewKD (Chen et al., CVPR 2021).
    """
    return jnp.minimum(epoch / epochs, 1) if epochs else jnp.ones_like(epoch)
