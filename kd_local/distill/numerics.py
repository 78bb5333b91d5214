"""Casts, roots and norms for losses, in float32 at least. Values and gradients are finite at zero."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.precision import at_least_float32


def widened(student: Any, *others: Any) -> tuple[Array, ...]:
    """All arrays in the student's dtype, or in float32 if that dtype is narrower."""
    wide = at_least_float32(student.dtype)
    return tuple(x.astype(wide) for x in (student, *others))


def root(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square root whose gradient at 0 is 0 (the true one is infinite)."""
    above = x > 0
    return jnp.where(above, jnp.sqrt(jnp.where(above, x, 1)), 0)


def norms(x: Float[Array, "*shape n"]) -> Float[Array, "*shape 1"]:
    """Euclidean norms along the last axis, with gradient 0 at norm 0."""
    return root(jnp.sum(x * x, axis=-1, keepdims=True))


def unit_vectors(x: Float[Array, "*shape n"]) -> Float[Array, "*shape n"]:
    """The vectors along the last axis, divided by their norms. Norms up to 1e-12 give a zero vector, with gradient 0.

    PyTorch's `normalize` divides such a vector by 1e-12, which gives a gradient of 1e12 for two equal features.
    """
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    large = squares > 1e-24
    return jnp.where(large, x * jax.lax.rsqrt(jnp.where(large, squares, 1)), 0)


def product(a: Float[Array, "m n"], b: Float[Array, "n k"]) -> Float[Array, "m k"]:
    """The matrix product, in full precision also on GPU and TPU, because losses subtract nearly equal numbers."""
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
