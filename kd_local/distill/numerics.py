"""Casts, roots, norms and divergences for losses, in float32 at least. Values and gradients are finite at zero."""

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


def divergence(
    log_p: Float[Array, "*shape n"], log_q: Float[Array, "*shape n"], difference: Float[Array, "*shape n"]
) -> Float[Array, "*shape"]:
    """KL(p || q) along the last axis, accurate and not negative for nearly equal p and q too.

    The sum of p d with d = log(p / q) has terms of both signs that cancel. That of p (d + exp(-d) - 1) is the same,
    since p and q each sum to 1, and has none below 0; for small d its terms are a power series.

    Args:
        log_p: logarithms of probabilities, which sum to 1.
        log_q: the same of q.
        difference: d. An error that is the same for all terms has no effect in first order.
    """
    p, q, d = jnp.exp(log_p), jnp.exp(log_q), difference
    small = jnp.abs(d) < (0.25 if d.dtype == jnp.float32 else 0.01)
    near = jnp.where(small, d, 0)
    series = 1 / 2 - near * (1 / 6 - near * (1 / 24 - near * (1 / 120 - near * (1 / 720 - near / 5040))))
    far = jnp.where(small, 0, d)
    return jnp.where(small, p * near * near * series, p * far + (q - p)).sum(axis=-1)


def product(a: Float[Array, "m n"], b: Float[Array, "n k"]) -> Float[Array, "m k"]:
    """The matrix product, in full precision also on GPU and TPU, because losses subtract nearly equal numbers."""
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
