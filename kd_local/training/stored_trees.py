"""Trees of arrays as a checkpoint stores them: PRNG keys as integers, under the name of their type."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jaxtyping import PyTree

_IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")


def check_storable(tree: PyTree) -> None:
    """Check that a checkpoint can store each leaf of a tree of arrays, or of `jax.ShapeDtypeStruct`s.

    Raises:
        TypeError: a leaf is no array, is empty, or has a dtype that cannot be stored. The error names the first one.
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        if problem := _problem(leaf):
            raise TypeError(f"{_name(path)} {problem}")


def stored(tree: PyTree) -> PyTree:
    """The tree as it is stored: each PRNG key is a dict with its integers, uint32, under the name of its dtype."""
    return jax.tree.map(lambda leaf: {str(leaf.dtype): _integers(leaf)} if _is_key(leaf) else leaf, tree)


def with_keys(tree: PyTree, like: PyTree) -> PyTree:
    """A stored tree with the PRNG keys that `like` has."""

    def with_key(leaf: Any, found: Any) -> Any:
        if not _is_key(leaf):
            return found
        return jax.random.wrap_key_data(found[str(leaf.dtype)], impl=_implementation(leaf.dtype))

    return jax.tree.map(with_key, like, tree)


def copied_if_on_host(leaf: jax.Array) -> jax.Array:
    """A copy of an array on the CPU, where orbax would read the buffer that the caller may donate."""
    if all(device.platform != "cpu" for device in leaf.devices()):
        return leaf
    return jax.device_put(leaf, leaf.sharding, may_alias=False)


def misfit(found: PyTree, expected: PyTree) -> str | None:
    """A text about the first array in which two trees differ, with its shape and dtype in each; None if none does."""
    has, needs = _leaves(found), _leaves(expected)
    for name in (*needs, *has):
        if has.get(name) != needs.get(name):
            is_there, wanted = has.get(name, "missing"), needs.get(name, "nothing")
            return f"{name} is {is_there}, expected {wanted}"
    return None


def _problem(leaf: Any) -> str | None:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        kind = "a NumPy array" if isinstance(leaf, np.ndarray | np.generic) else f"a Python {type(leaf).__name__}"
        return f"is {kind}, which a checkpoint cannot store: use a jax.Array"
    described = f"is {leaf.dtype}{list(leaf.shape)}"
    if not leaf.size:
        return f"{described}, an array without elements, which a checkpoint cannot store: leave it out"
    if _is_key(leaf):
        known = _implementation(leaf.dtype)
        return None if known else f"{described}, which a checkpoint cannot store: store jax.random.key_data of it"
    if not _has_type(str(leaf.dtype)):
        return f"{described}, a dtype that a checkpoint cannot store: use a wider one"
    return None


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _integers(key: Any) -> Any:
    if isinstance(key, jax.Array):
        return jax.random.key_data(key)
    integers = jax.eval_shape(jax.random.key_data, key)
    return jax.ShapeDtypeStruct(integers.shape, integers.dtype, sharding=key.sharding)


@cache
def _implementation(dtype: Any) -> str | None:
    """The name of the implementation of a type of PRNG keys; None if it is not one of JAX's."""
    for name in _IMPLEMENTATIONS:
        if jax.eval_shape(partial(jax.random.key, impl=name), 0).dtype == dtype:
            return name
    return None


@cache
def _has_type(name: str) -> bool:
    try:
        tensorstore.dtype(name)
    except ValueError:
        return False
    return True


def _leaves(tree: PyTree) -> dict[str, str]:
    """The dtype and shape of each array by its path."""
    return {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
