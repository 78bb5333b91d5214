"""Computing again what was let go of, in a form that the CPU's compiler keeps.

`jax.checkpoint` protects what it computes again by optimization barriers. The CPU's compiler drops these, finds the
same computation in the forward pass, and merges the two: nothing is saved. Here a dependence on data takes their place.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Tree = TypeVar("Tree")


def add_dependence(first: Any, then: Tree) -> Tree:
    """`then` as it is, but not before `first` is computed: what needs it can neither start earlier nor be merged with
    the same computation elsewhere.

    On the CPU each array of `then` is multiplied by 1 + 0 v, v being the sum of a number of each array of `first`:
    there had better be few of both, and small ones in `then` (parameters). Where v is not finite, the result is not
    either.
    """

    def multiply(first: Any, then: Any) -> Any:
        wide = jnp.result_type(*first)
        numbers = jnp.concatenate([x.reshape(-1)[:1].astype(wide) for x in first])
        # A product of vectors, since of anything else the compiler would make a part of what reads it, and keep all of
        # `first` for that.
        value = jnp.dot(numbers, jnp.ones(len(first), wide), precision=lax.Precision.HIGHEST)
        return jax.tree.map(lambda x: x * (1 + 0 * value).astype(x.dtype), then)

    def barrier(first: Any, then: Any) -> Any:
        return lax.optimization_barrier((first, then))[1]

    return lax.platform_dependent(jax.tree.leaves(first), then, cpu=multiply, default=barrier)


def rematerialize(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of `(variables, *inputs)`, floating-point arrays all: for its gradient only these are kept, and
    what it computes from them is computed again once the gradient of its result is there.

    Reference: Chen et al., "Training deep nets with sublinear memory cost" (arXiv 1604.06174).
    """
    return lambda variables, *inputs: rematerialize_in_turn(function)((variables,), *inputs)[0]


def rematerialize_in_turn(*functions: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """As `rematerialize`, of several functions of the same inputs: `((variables, ...), *inputs)` gives a tuple of
    results. In both passes each is finished before the next is begun, so that only one needs room; the backward pass
    goes from the last to the first, so whichever needs most had better be the first."""

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
        # Where results are added up they have one gradient, which exists until the last of these has read it. That one
        # reads it before its own inner gradients need room, so it had better be the one with the largest: the first.
        for function, variables, gradient in reversed([*zip(functions, each, gradients, strict=True)]):
            variables = add_dependence((of_variables[-1:], gradient), variables)
            own, *others = jax.vjp(function, variables, *inputs)[1](gradient)
            of_variables.append(own)
            of_inputs = jax.tree.map(jnp.add, of_inputs, others) if of_inputs else others
        return tuple(reversed(of_variables)), *of_inputs

    call = jax.custom_vjp(apply)
    call.defvjp(forward, backward)
    return call
