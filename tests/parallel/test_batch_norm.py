"""Batch normalisation of each device's own part of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.batch_division import normalised_per_device
from kd_local.local import ContSup, EndToEnd, cut
from kd_local.parallel import StepOptions, compile_step, device_mesh, groups, on_every_device, over_the_batch
from tests.support import tiny

NETWORK = tiny.network(10)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
METHODS = {
    "end_to_end": EndToEnd(NETWORK, OPTIMIZER),
    "contsup": ContSup(cut(NETWORK, 3, classes=10, context="R1E"), OPTIMIZER),
}
IMAGE = (8, 8, 3)
KEY = jax.random.key(1)


def start(method):
    state = method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32))
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == jnp.float32 else x, state)


def batch(size: int):
    random = np.random.default_rng(size)
    return random.standard_normal((size, *IMAGE)), np.arange(size, dtype=np.int32) % 10


def in_parts(method, parts: int, size: int):
    """A step on one device with a batch in several parts."""
    state, metrics = start(method), {}
    images, labels = batch(size)
    tensors = {"images": images, "labels": labels}
    with normalised_per_device(parts):
        for program in method.programs():
            read = tuple(tensors[name] for name in program.reads)
            constants = jnp.asarray(program.constants)
            state[program.name], written, metrics[program.name] = jax.jit(program.function)(
                state[program.name], (), read, KEY, constants
            )
            tensors.update(zip(program.writes, written, strict=True))
    return jax.device_get((state, metrics))


def on_devices(method, mesh, batch_norm: str, size: int):
    first, state = groups(mesh)[0], start(method)
    placed = jax.device_put(batch(size), over_the_batch(first, size))
    step = compile_step(method, *placed, state=state, mesh=mesh, options=StepOptions(batch_norm=batch_norm))
    return jax.device_get(step(step.place(state), *placed, jax.device_put(KEY, on_every_device(first))))


def assert_equal(found, expected):
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10, err_msg=jax.tree_util.keystr(path))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", METHODS)
@jax.numpy_dtype_promotion("standard")
def test_devices_normalise_like_one_device_part_by_part(name):
    method = METHODS[name]
    mesh = device_mesh(4) if name == "end_to_end" else device_mesh(4, 2)
    with jax.enable_x64(True):
        by_parts = in_parts(method, 4, 16)
        assert_equal(on_devices(method, mesh, "device", 16), by_parts)
        whole = in_parts(method, 1, 16)
        differs = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (by_parts[0], whole[0])), strict=True)]
        assert max(differs) > 1e-3  # or nothing would have been shown


@pytest.mark.long
@jax.numpy_dtype_promotion("standard")
def test_a_batch_that_is_not_divided_is_normalised_as_a_whole():
    method = METHODS["end_to_end"]
    with jax.enable_x64(True):
        assert_equal(on_devices(method, device_mesh(4), "device", 5), in_parts(method, 1, 5))


@pytest.mark.long
def test_normalisation_per_device_needs_no_communication():
    """Only running statistics are sent to other devices, and no computation waits for them."""
    collectives = {}
    for each in ("global", "device"):
        images, labels = jax.ShapeDtypeStruct((16, *IMAGE), jnp.float32), jax.ShapeDtypeStruct((16,), jnp.int32)
        options = StepOptions(batch_norm=each)
        step = compile_step(METHODS["end_to_end"], images, labels, mesh=device_mesh(4), options=options)
        (executable,) = step.executables
        collectives[each] = executable.as_text().count(" all-reduce(")
    statistics = step.plan.state["network"]["batch_stats"]
    layers = sum(path[-1].key == "mean" for path, _ in jax.tree.leaves_with_path(statistics))
    # Gone are a layer's sums over the batch, of which the compiler makes one exchange forward, and most of them in the
    # gradient; those of the parameters' gradients remain.
    assert collectives["device"] <= collectives["global"] - layers, collectives
