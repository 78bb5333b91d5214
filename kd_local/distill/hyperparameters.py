"""Hyper-parameters of objectives: checks of their ranges, and weights that grow over the first epochs."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def check_weights(**weights: float | int) -> None:
    """Checks that the weights of a loss's terms are finite and not negative.

    Raises:
        ValueError: a weight is out of range; the error names the first one.
    """
    for name, value in weights.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}: use a finite number, 0 or larger; 0 leaves the term out")


def check_positive(**numbers: float | int) -> None:
    """Checks that numbers such as temperatures and sizes are finite and above 0.

    Raises:
        ValueError: a number is out of range; the error names the first one.
    """
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}: use a finite number above 0")


def warmup(epoch: Float[Array, ""], epochs: float | int) -> Float[Array, ""]:
    """min(epoch / epochs, 1), with the epoch counted from 1; 1 if `epochs` is 0.

    Reference: the mdistiller code, for DKD (Zhao et al., CVPR 2022) and ReviewKD (Chen et al., CVPR 2021).
    """
    return jnp.minimum(epoch / epochs, 1) if epochs else jnp.ones_like(epoch)
