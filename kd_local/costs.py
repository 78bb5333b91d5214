"""What a function costs: its multiply-adds, counted before anything is compiled."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """The multiply-adds of a function's convolutions and matrix products, as the field counts a network's.

    Arguments may be arrays or `jax.ShapeDtypeStruct`; nothing is computed. What repeats in a loop is counted as often
    as it runs, of branches the dearest counts; the trip count of a `while` loop is not known: its body counts once.
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
    """The shapes of what an equation reads, and of what it gives."""
    return [variable.aval.shape for variable in equation.invars], equation.outvars[0].aval.shape


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return [one for item in value for one in _jaxprs(item)] if isinstance(value, tuple | list) else []
