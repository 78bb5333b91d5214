"""Arrays of every dtype come back from a checkpoint with the same bits, or are refused by name before training."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree

from kd_local.parallel import device_mesh, on_every_device
from kd_local.training.checkpoints import CheckpointError, Checkpoints
from tests.support.checkpoints import assert_same_bits

KEYS = {
    "key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(4), 6).reshape(2, 3),
    "rbg": jax.random.key(5, impl="rbg"),
    "unsafe_rbg": jax.random.key(6, impl="unsafe_rbg"),
}
OTHERS = {
    "integers of a key": jax.random.PRNGKey(3),
    "none": None,
    "no parts": ({}, (), []),
    "no axes": jnp.array(True),
    **{name: jnp.arange(-2, 2).astype(name) for name in ("bfloat16", "float16", "int4", "uint8", "bool", "complex64")},
    "float8": jnp.ones(3, jnp.float8_e4m3fn),
}


def integers_of_keys(tree: PyTree) -> PyTree:
    def integers(leaf: jax.Array) -> jax.Array:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(integers, tree)


@pytest.mark.parametrize("devices", [1, 2])
def test_keys_and_unusual_arrays_are_restored(tmp_path: Path, devices: int) -> None:
    place = on_every_device(device_mesh(devices))
    tree = jax.device_put({"module00": KEYS | OTHERS}, place)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)
        for like in (tree, shapes):
            restored = checkpoints.restore_latest(like)
            assert restored is not None
            for leaf, expected in zip(jax.tree.leaves(restored[1]), jax.tree.leaves(tree), strict=True):
                assert leaf.dtype == expected.dtype and leaf.sharding.is_equivalent_to(place, leaf.ndim)
            assert_same_bits(integers_of_keys(restored[1]), integers_of_keys(tree))


def test_a_key_of_another_implementation_belongs_to_another_run(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"rng": KEYS["rbg"]})
        for like, text in (
            (KEYS["unsafe_rbg"], "rng/key<urbg> is missing, expected uint32[4]"),
            (jax.random.key_data(KEYS["rbg"]), "rng is missing, expected uint32[4]"),
        ):
            with pytest.raises(CheckpointError, match=re.escape(text)):
                checkpoints.restore_latest({"rng": like})


class OwnKeys:
    """An array-like leaf of a type that only its owner knows."""


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (3, "is a Python int, which a checkpoint cannot store: use a jax.Array"),
        (2.5, "is a Python float,"),
        ("text", "is a Python str,"),
        (OwnKeys(), "is a Python OwnKeys,"),
        (np.arange(3), "is a NumPy array,"),
        (np.float32(2), "is a NumPy array,"),
        (jnp.zeros((3, 0)), "is float32[3, 0], an array without elements, which a checkpoint cannot store: leave it"),
        (jax.random.split(KEYS["key"], 0), "is key<fry>[0], an array without elements,"),
        (jnp.arange(3).astype(jnp.uint4), "is uint4[3], a dtype that a checkpoint cannot store: use a wider one"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(tmp_path: Path, leaf: Any, text: str) -> None:
    tree = {"state": {"module00": {"more": leaf}}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(3)})
        for attempt in (lambda: checkpoints.restore_latest(tree), lambda: checkpoints.save(2, tree)):
            with pytest.raises(CheckpointError) as raised:
                attempt()
            assert f"checkpoints cannot be kept in {tmp_path}: state/module00/more {text}" in str(raised.value)
        checkpoints.save(2, {"a": jnp.ones(3)})
