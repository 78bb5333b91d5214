"""Costs, counted without compilation: the multiply-adds of a function, and the bytes of a pytree."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def tree_bytes(tree: Any) -> int:
    """Bytes of all leaves of a pytree of arrays, `jax.ShapeDtypeStruct` or abstract values."""
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def device_bytes(tree: Any) -> int:
    """Bytes of a pytree of arrays on one of the devices that hold them."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """The multiply-adds of a function's convolutions and matrix products. Nothing is compiled or computed.

    >>> import jax.numpy as jnp
    >>> multiply_adds(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 4)))
    24

    The body of a `scan` is counted as often as it runs. Only the most expensive branch of a conditional is counted. The
    number of iterations of a `while` loop is unknown, so its body is counted once.

    Args:
        function: any function that JAX can trace.
        *arguments: its arguments: arrays, `jax.ShapeDtypeStruct`s or pytrees of them. Only shapes and dtypes matter.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            (_, kernel), out = _shapes(equation)
            total += math.prod(out) * math.prod(kernel) // kernel[parameters["dimension_numbers"].rhs_spec[0]]
        elif name == "dot_general":
            (left, _), out = _shapes(equation)
            contracted, _ = parameters["dimension_numbers"][0]
            total += math.prod(out) * math.prod(left[i] for i in contracted)
        else:
            inside = [_count(one) for value in parameters.values() for one in _jaxprs(value)]
            repeats = parameters["length"] if name == "scan" else 1
            total += repeats * (max(inside) if name == "cond" else sum(inside))
    return total


def _shapes(equation: Any) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """The shapes of an equation's inputs, and the shape of its first output."""
    return [variable.aval.shape for variable in equation.invars], equation.outvars[0].aval.shape


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return [one for item in value for one in _jaxprs(item)] if isinstance(value, tuple | list) else []
