"""Casts, roots and norms that losses are made of: in float32 at least, finite at zero, and so are their gradients."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.precision import at_least_float32


def widened(student: Any, *others: Any) -> tuple[Array, ...]:
    """All in the student's dtype, or in float32 where that is narrower."""
    wide = at_least_float32(student.dtype)
    return tuple(x.astype(wide) for x in (student, *others))


def root(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root; at 0 it is 0 and so is its gradient, which is infinite."""
    above = x > 0
    return jnp.where(above, jnp.sqrt(jnp.where(above, x, 1)), 0)


def norms(x: Float[Array, "*shape n"]) -> Float[Array, "*shape 1"]:
    """Euclidean norms along the last axis, with gradient 0 where they are 0."""
    return root(jnp.sum(x * x, axis=-1, keepdims=True))


def unit_vectors(x: Float[Array, "*shape n"]) -> Float[Array, "*shape n"]:
    """Divided by its norm along the last axis; norms up to 1e-12 give 0, and gradient 0.

    PyTorch's `normalize` divides these by 1e-12: a gradient of 1e12 wherever two features are the same.
    """
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    large = squares > 1e-24
    return jnp.where(large, x * jax.lax.rsqrt(jnp.where(large, squares, 1)), 0)


def product(a: Float[Array, "m n"], b: Float[Array, "n k"]) -> Float[Array, "m k"]:
    """The matrix product without the shorter mantissas of GPU and TPU: losses subtract what is nearly the same."""
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
