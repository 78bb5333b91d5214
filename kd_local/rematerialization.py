"""Rematerialisation that XLA's CPU compiler does not undo.

`jax.checkpoint` protects a recomputation by optimization barriers. The CPU compiler drops the barriers and merges the
recomputation with the same computation in the forward pass, so no memory is saved. This file uses data dependences
instead of barriers.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


def add_dependence(first: Any, then: Tree) -> Tree:
    """Returns `then` unchanged, but makes it depend on `first`.

    XLA cannot start the consumers of the result before `first` is computed, nor merge them with an equal computation
    elsewhere. On the CPU each array of `then` is multiplied by 1 + 0 v. Here v is the sum of one number from each array
    of `first`; if v is not finite, the result is not finite either. Use few arrays in both, and small ones (parameters)
    in `then`. Other platforms use an optimization barrier.

    Args:
        first: a pytree of floating-point arrays, not empty.
        then: a pytree of floating-point arrays.
    """

    def multiply(first: Any, then: Any) -> Any:
        wide = jnp.result_type(*first)
        numbers = jnp.concatenate([x.reshape(-1)[:1].astype(wide) for x in first])
        # A dot product: the compiler would fuse any other operation into its consumers, and keep all of `first` for
        # them.
        value = jnp.dot(numbers, jnp.ones(len(first), wide), precision=lax.Precision.HIGHEST)
        return jax.tree.map(lambda x: x * (1 + 0 * value).astype(x.dtype), then)

    def barrier(first: Any, then: Any) -> Any:
        return lax.optimization_barrier((first, then))[1]

    return lax.platform_dependent(jax.tree.leaves(first), then, cpu=multiply, default=barrier)


def rematerialize(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with rematerialisation (gradient checkpointing).

    The new function stores only its inputs for the backward pass. It recomputes the rest when the gradient of its
    result arrives.

    >>> square = rematerialize(lambda scale, x: (scale * x) ** 2)
    >>> jax.grad(square)(2.0, 3.0).item()  # 2 scale x^2
    36.0

    Args:
        function: a function of `(variables, *inputs)`; all arrays in these pytrees are floating-point.

    Reference: Chen et al., "Training deep nets with sublinear memory cost" (arXiv 1604.06174).
    """
    return lambda variables, *inputs: rematerialize_in_turn(function)((variables,), *inputs)[0]


def rematerialize_in_turn(*functions: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Like `rematerialize`, for several functions of the same inputs, which run one at a time.

    In both passes each function finishes before the next one starts, so that only one of them needs memory at a time.
    The backward pass runs from the last function to the first. Put the function that needs the most memory first.

    Args:
        *functions: functions of `(variables, *inputs)`, as for `rematerialize`.

    Returns:
        A function of `((variables, ...), *inputs)`, with one `variables` per function, that returns a tuple of results.
    """

    def apply(each: tuple[Any, ...], *inputs: Any) -> tuple[Any, ...]:
        results: list[Any] = []
        for function, variables in zip(functions, each, strict=True):
            results.append(function(add_dependence(results[-1], variables) if results else variables, *inputs))
        return tuple(results)

    def forward(each: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return apply(each, *inputs), (each, inputs)

    def backward(kept: Any, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        each, inputs = kept
        of_variables: list[Any] = []
        of_inputs: list[Any] = []
        # If the caller adds the results, they share one gradient. It is freed once functions[0], the last to run
        # backward, has read it, before the inner gradients of functions[0] are allocated. So the largest comes first.
        for function, variables, gradient in reversed([*zip(functions, each, gradients, strict=True)]):
            variables = add_dependence((of_variables[-1:], gradient), variables)
            own, *others = jax.vjp(function, variables, *inputs)[1](gradient)
            of_variables.append(own)
            of_inputs = jax.tree.map(jnp.add, of_inputs, others) if of_inputs else others
        return tuple(reversed(of_variables)), *of_inputs

    call = jax.custom_vjp(apply)
    call.defvjp(forward, backward)
    return call
