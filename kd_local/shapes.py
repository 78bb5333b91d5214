"""Checks of arguments that are arrays. They look at shapes and dtypes when a function is called or traced.

An array of a wrong shape would often be broadcast, and the result would be a number of something else.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_KINDS = {"float": jnp.floating, "int": jnp.integer, "bool": jnp.bool_}


def check_arrays(**arrays: tuple[Any, str]) -> None:
    """Check the dtypes and shapes of some arguments, given by name with their forms, such as `float batch classes`.

    A form is the kind of the dtype, then a word for each dimension. Dimensions of the same word have the same length;
    a number is the length itself. `...` at the end allows further dimensions.

    >>> check_arrays(logits=(jnp.zeros((8, 10)), "float batch classes"), labels=(jnp.zeros(8, int), "int batch"))

    Raises:
        ValueError: the first array of another form, with its shape or dtype and what was expected.
    """
    lengths: dict[str, tuple[str, int]] = {}
    for name, (array, form) in arrays.items():
        kind, *words = form.split()
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise ValueError(f"{name} is {_written(array)}: use an array {_form(words)}, such as jnp.asarray({name})")
        shape = tuple(array.shape)
        fixed = [word for word in words if word != "..."]
        if len(shape) < len(fixed) or (len(shape) > len(fixed) and "..." not in words):
            raise ValueError(f"{name} has shape {shape}: use {_form(words)}{_way_out(name, shape, fixed)}")
        if not jnp.issubdtype(array.dtype, _KINDS[kind]):
            wanted = {"float": "float32", "int": "int32", "bool": "bool"}[kind]
            raise ValueError(f"{name} is {array.dtype}: use {kind} numbers, such as {name}.astype('{wanted}')")
        for word, length in zip(fixed, shape[: len(fixed)], strict=True):
            owner, known = lengths.setdefault(word, (name, int(word) if word.isdecimal() else length))
            if length != known:
                other = "" if owner == name else f", and {owner} has {known}"
                raise ValueError(
                    f"{name} has shape {shape}: use {_form(words)}; its {word} is {length}{other}"
                    + ("" if other else f", not {known}")
                )


def check_labels(labels: Any, classes: int) -> None:
    """Check that labels are from 0 to `classes` - 1. Traced labels have no values yet and are not looked at.

    Raises:
        ValueError: a label is outside.
    """
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    lowest, highest = (int(of(np.asarray(labels))) for of in (np.min, np.max))
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels are from {lowest} to {highest}: use 0 to {classes - 1}, for {classes} classes")


def _form(words: list[str]) -> str:
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"


def _way_out(name: str, shape: tuple[int, ...], fixed: list[str]) -> str:
    if len(fixed) == 1 and len(shape) == 2:
        return f", such as {name}[:, 0]" if shape[1] == 1 else f", such as {name}.argmax(axis=1)"
    if len(shape) == len(fixed) - 1:
        return f"; of a single one, {name}[None]"
    return ""


def _written(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
