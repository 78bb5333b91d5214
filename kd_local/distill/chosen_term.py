"""A term of a loss that is computed only in some steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Term = Callable[[Any, Any], tuple[Float[Array, ""], Any, Any]]
"""`(trained, fixed) -> (loss, metrics, statistics)`: a term of a loss. `fixed["statistics"]` are those before."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def if_chosen(term: Term, chosen: Bool[Array, ""], trained: Any, fixed: Any) -> tuple[Float[Array, ""], Any, Any]:
    """The term if it is chosen. Else it is not computed: loss and metrics are 0, and the statistics stay as they are.

    Gradients flow from the loss to `trained`. They are computed with the loss. So the term's activations are freed
    before the next term starts, and they need no memory if the term is not chosen. Otherwise the backward pass of a
    conditional would store them for every term. On a CPU the step of FCFD, ResNet-8 from ResNet-20, batch 32, 16x16
    images, takes 0.070 CPU seconds and 14.6 MiB; with all terms computed and masked, 0.090 s and 20.0 MiB.

    Args:
        term: a function that closes over no traced arrays.
        chosen: True to compute the term.
        trained: a pytree of floating arrays.
        fixed: a mapping to arrays that get no gradient.
    """
    return jax.lax.cond(chosen, term, partial(_zero, term), trained, fixed)


def _zero(term: Term, trained: Any, fixed: Any) -> tuple[Array, Any, Any]:
    loss, metrics, _ = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(term, trained, fixed))
    return loss, metrics, fixed["statistics"]


def _forward(term: Term, chosen: Any, trained: Any, fixed: Any) -> tuple[Any, Any]:
    def compute(trained: Any, fixed: Any) -> Any:
        def first(trained: Any) -> tuple[Array, Any]:
            loss, *others = term(trained, fixed)
            return loss, others

        (loss, others), gradients = jax.value_and_grad(first, has_aux=True)(trained)
        return (loss, *others), gradients

    def skip(trained: Any, fixed: Any) -> Any:
        return _zero(term, trained, fixed), jax.tree.map(jnp.zeros_like, trained)

    return jax.lax.cond(chosen, compute, skip, trained, fixed)


def _backward(term: Term, gradients: Any, cotangents: Any) -> tuple[None, Any, None]:
    return None, jax.tree.map(lambda gradient: (cotangents[0] * gradient).astype(gradient.dtype), gradients), None


if_chosen.defvjp(_forward, _backward)
