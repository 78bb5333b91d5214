"""Modules on separate devices that work at the same time give the same bits as one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.data import from_arrays
from kd_local.distill import Teacher
from kd_local.local import ContSup, EndToEnd, cut
from kd_local.parallel import (
    StepOptions,
    check_step,
    compile_step,
    device_mesh,
    groups,
    on_every_device,
    over_the_batch,
)
from kd_local.training import Checkpoints, train
from kd_local.training.interruption import Interrupted, Interruption
from tests.support import tiny
from tests.support.taught import locally_taught

NETWORK = tiny.network()
OPTIMIZER = optax.sgd(0.05, momentum=0.9)
IMAGE = (8, 8, 1)


def contsup(context, **arguments):
    return ContSup(cut(NETWORK, 3, classes=4, context=context, **arguments), OPTIMIZER)


def taught():
    teacher = Teacher(NETWORK, tiny.variables(NETWORK, 3, IMAGE))
    return locally_taught(NETWORK, teacher, IMAGE, OPTIMIZER, boundaries=["stem"], context="E")


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    labels = np.arange(56) % 4
    images = random.integers(0, 255, (56, *IMAGE), np.uint8)
    return from_arrays((images[:48], labels[:48]), (images[48:], labels[48:]), classes=4)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


METHODS = {
    "R0": lambda: contsup("R0"),
    "E": lambda: contsup("E"),
    "R1E": lambda: contsup("R1E"),
    "teacher": taught,
}


@pytest.mark.long
@pytest.mark.usually("R0")
@pytest.mark.parametrize("name", METHODS)
def test_groups_give_the_results_of_one_device(name, data):
    method = METHODS[name]()
    groups = len(method.programs())
    # 48 images in batches of 16: 3 steps an epoch.
    one, many = (train(method, data, epochs=4, batch_size=16, mesh=device_mesh(1, each)) for each in (1, groups))
    assert one.step == many.step == 12
    assert_same(one.state, many.state)
    for a, b in zip(one.records, many.records, strict=True):
        assert a.train == b.train
        accuracies = lambda scores: [scores.accuracy, *(each.accuracy for each in scores.exits.values())]
        losses = lambda scores: [scores.loss, *(each.loss for each in scores.exits.values())]
        assert accuracies(a.test) == accuracies(b.test)
        # The sum over a batch that is divided among more devices.
        assert losses(a.test) == pytest.approx(losses(b.test), rel=1e-6)


def test_each_part_is_on_the_devices_of_its_group(data):
    method = contsup("R0")
    result = train(method, data, epochs=1, batch_size=16, mesh=device_mesh(1, 3))
    devices = {
        name: {next(iter(leaf.devices())).id for leaf in jax.tree.leaves(part)} for name, part in result.state.items()
    }
    assert devices == {f"module0{i}": {jax.devices()[i].id} for i in range(3)}


@pytest.mark.exhaustive
def test_groups_of_several_devices(data):
    """Three groups of two devices give the results of one device in float64, up to rounding."""
    method = contsup("R1E")
    random = np.random.default_rng(1)
    images, labels = random.standard_normal((16, *IMAGE)), np.arange(16, dtype=np.int32) % 4
    after = []
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        for mesh in (device_mesh(1, 1), device_mesh(2, 3)):
            first = groups(mesh)[0]
            state = method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32))
            state = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == jnp.float32 else x, state)
            key = jax.device_put(jax.random.key(1), on_every_device(first))
            step = compile_step(method, images, labels, state=state, mesh=mesh)
            state = step.place(state)
            for _ in range(2):
                batch = jax.device_put((images, labels), over_the_batch(first, 16))
                state, _ = step(state, *batch, key)
            after.append(jax.device_get(state))
    for a, b in zip(*map(jax.tree.leaves, after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


class StopAt:
    def __init__(self, step, interruption):
        self.step, self.interruption = step, interruption

    def on_start(self, plan):
        self.first = plan.first_step

    def on_step(self, record):
        if record.step == self.step:
            self.interruption.received = 15

    def on_epoch(self, record):
        pass


@pytest.mark.exhaustive
def test_a_run_resumes_with_another_number_of_groups(data, tmp_path):
    method = contsup("R1E")
    whole = train(method, data, epochs=3, batch_size=8)
    interruption = Interruption()
    with pytest.raises(Interrupted), Checkpoints(tmp_path / "c") as checkpoints:
        train(
            method,
            data,
            epochs=3,
            batch_size=8,
            mesh=device_mesh(1, 3),
            checkpoints=checkpoints,
            observers=(StopAt(7, interruption),),
            interruption=interruption,
        )
    watch = StopAt(None, interruption)
    with Checkpoints(tmp_path / "c") as checkpoints:
        resumed = train(
            method, data, epochs=3, batch_size=8, mesh=device_mesh(1, 2), checkpoints=checkpoints, observers=(watch,)
        )
    assert watch.first == 10  # later by the three in flight, in the middle of an epoch of 6 steps
    assert_same(whole.state, resumed.state)
    # The epoch in which it was stopped counts every batch.
    assert resumed.records[0].train == whole.records[-len(resumed.records)].train


def test_more_groups_than_modules_are_refused():
    with pytest.raises(ValueError, match=r"^2 groups of devices for 1 pieces of a step: use 1 to 1 \(mesh.module\)"):
        check_step(EndToEnd(NETWORK, OPTIMIZER), device_mesh(1, 2), StepOptions())
