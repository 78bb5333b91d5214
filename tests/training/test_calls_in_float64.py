"""Several steps per call compute what single steps compute, in float64, up to 1e-12."""

import copy
from functools import partial

import jax
import numpy as np
import optax
import pytest

from kd_local.data import Augmentation, Data, StreamedSplit
from kd_local.distill import OBJECTIVES, Distillation, Teacher
from kd_local.local import ContSup, EndToEnd, cut
from kd_local.parallel import JOINED, StepOptions, device_mesh
from kd_local.training import TeacherCache, make_optimizer, train
from tests.support import tiny
from tests.support.prepared import examples, photograph, prepare, prepare_once  # noqa: F401
from tests.support.streamed import SIZE, prepared, streamed_folder  # noqa: F401

pytestmark = pytest.mark.exhaustive  # compilation takes most of the time

NETWORK = tiny.network(dtype=np.float64)
# Exact in float32: other numbers would be rounded as each executable is compiled.
AUGMENTATION = Augmentation(pad=1, flip=True, mean=(128.0,), std=(64.0,))
DATA = tiny.data(43, 5, augmentation=AUGMENTATION)  # five full batches of 8, and one of 3
OPTIMIZER = optax.sgd(0.01, momentum=0.9)


def in_float64(method):
    """The method with a state in float64."""

    def init(self, rng, like):
        state = super(kind, self).init(rng, like)
        return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, state)

    kind = type("InFloat64", (type(method),), {"init": init})
    changed = copy.copy(method)
    object.__setattr__(changed, "__class__", kind)
    return changed


def kd(objective="kd", *, cached=False):
    teacher = tiny.network(width=6)
    teachers = (Teacher(teacher, tiny.variables(teacher, 1, (8, 8, 1))),)
    return Distillation(NETWORK, teachers, OBJECTIVES[objective](), OPTIMIZER, cached=cached)


METHODS = {
    "end to end": lambda optimizer=OPTIMIZER: EndToEnd(NETWORK, optimizer),
    "R1E": lambda optimizer=OPTIMIZER: ContSup(cut(NETWORK, 3, classes=4, context="R1E"), optimizer),
    "kd": kd,
    "block_kd": partial(kd, "block_kd"),
}


def check_equal(method, data=DATA, *, steps=2, on_devices=True, **arguments):
    """Two epochs of single steps, an executable for each program, and of n steps per call."""
    arguments = {"epochs": 2, "batch_size": 8, "seed": 3, **arguments}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        one = train(in_float64(method), data, **arguments)
        several = train(
            in_float64(method), data, **arguments, options=StepOptions(JOINED, steps), on_devices=on_devices
        )
    assert one.step == several.step
    for (path, a), b in zip(jax.tree.leaves_with_path(one.state), jax.tree.leaves(several.state), strict=True):
        assert a.dtype == b.dtype != np.float32
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12, err_msg=jax.tree_util.keystr(path))
    return one


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    check_equal(METHODS[name]())


@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("accumulate", [2, 3])
@pytest.mark.parametrize("name", ["end to end", "R1E"])
def test_accumulated_gradients(name, accumulate, steps):
    """The batches of an update are in one call or in several; the rest of an epoch is an update of its own."""
    optimizer = make_optimizer("sgd", optax.constant_schedule(0.01), accumulate=accumulate, batches_per_epoch=6)
    one = check_equal(METHODS[name](optimizer), steps=steps)
    counts = [
        leaf for path, leaf in jax.tree.leaves_with_path(one.state) if "gradient_step" in jax.tree_util.keystr(path)
    ]
    assert counts and all(count == 2 * -(-6 // accumulate) for count in counts)


def test_cached_logits_of_a_teacher(tmp_path):
    teacher = tiny.network(width=6)
    cache = TeacherCache(
        teacher, tiny.variables(teacher, 1, (8, 8, 1)), DATA, folder=tmp_path, batch_size=8, steps=12, seed=3
    )
    check_equal(kd(cached=True), extra={"teacher0_logits": cache.fill()})


@pytest.mark.parametrize("name", ["end to end", "R1E"])
def test_four_devices(name):
    """Neither the 43 images nor the last batch of 3 are a multiple of the devices."""
    check_equal(METHODS[name](), mesh=device_mesh(4))


def test_streamed_images(prepared):  # noqa: F811
    split = StreamedSplit(prepared, image_size=SIZE, workers=0)
    augmentation = Augmentation(flip=True, mean=(128.0,) * 3, std=(64.0,) * 3)
    data = Data("imagenet2012", split, split, None, 1000, augmentation)
    network = tiny.network(1000, dtype=np.float64)
    check_equal(EndToEnd(network, OPTIMIZER), data, on_devices=False, epochs=1)
