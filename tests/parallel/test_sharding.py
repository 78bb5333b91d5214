"""Optimizer state and parameters divided among devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from kd_local.local import ContSup, cut
from kd_local.models import resnet
from kd_local.parallel import StepOptions, compile_step, device_mesh, on_every_device, over_the_batch, part_shardings

METHOD = ContSup(cut(resnet(8, classes=10), 2, classes=10, context="R1E"), optax.sgd(0.1, momentum=0.9))
IMAGE = (8, 8, 3)


def test_an_array_is_divided_along_its_longest_divisible_dimension():
    mesh = device_mesh(4)
    part = {
        "params": {"large": jnp.zeros((3, 64, 128)), "odd": jnp.zeros((65, 67))},
        "batch_stats": {"mean": jnp.zeros(8192)},
        "opt_state": (jnp.zeros((3, 64, 128)), jnp.zeros(4095)),
    }
    specs = lambda shard: jax.tree.map(lambda x: x.spec, part_shardings(part, mesh, shard))
    whole, along = PartitionSpec(), PartitionSpec(None, None, "data")
    assert specs("nothing") == jax.tree.map(lambda _: whole, part)
    assert specs("optimizer")["opt_state"] == (along, whole)  # what is small stays whole
    assert specs("optimizer")["params"] == {"large": whole, "odd": whole}
    assert specs("state")["params"] == {"large": along, "odd": whole}
    assert specs("state")["batch_stats"] == {"mean": whole}


@pytest.mark.exhaustive
@pytest.mark.parametrize("shard", ["optimizer", "state"])
def test_a_divided_state_gives_the_same_step_with_less_memory(shard):
    mesh = device_mesh(4)
    random = np.random.default_rng(0)
    images, labels = random.standard_normal((8, *IMAGE)), np.arange(8, dtype=np.int32)
    results, needs = [], []
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        for each in ("nothing", shard):
            state = METHOD.init(jax.random.key(0), jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32))
            state = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == jnp.float32 else x, state)
            key = jax.device_put(jax.random.key(1), on_every_device(mesh))
            batch = jax.device_put((images, labels), over_the_batch(mesh, 8))
            step = compile_step(METHOD, *batch, state=state, mesh=mesh, options=StepOptions(shard=each))
            for executable in dict.fromkeys(step.executables):
                assert executable.memory_analysis().alias_size_in_bytes > 0
            state = step.place(state)
            held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
            state, _ = step(state, *batch, key)
            after = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
            assert after == held  # still divided
            needs.append(held)
            results.append(jax.device_get(state))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    # Of the state half is momentum; three quarters of what is divided go. What is small stays.
    assert needs[1] < {"optimizer": 0.70, "state": 0.40}[shard] * needs[0]
