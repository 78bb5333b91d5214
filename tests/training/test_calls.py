"""Steps are grouped into calls by their number alone, and calls of several steps compute what single steps compute."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import optax
import pytest

from kd_local.data import WHOLE
from kd_local.distill import OBJECTIVES, Distillation, Teacher
from kd_local.local import ContSup, EndToEnd, cut
from kd_local.parallel import JOINED, StepOptions, device_mesh
from kd_local.training import Checkpoints, NotFiniteError, train
from kd_local.training import calls as calls_module
from kd_local.training.calls import (
    call_sizes,
    check_calls,
    default_options,
    grouped,
    steps_that_divide,
    takes_single_steps,
)
from kd_local.training.evaluation import Evaluator
from kd_local.training.image_source import HostBatch, OnDevices, image_source
from kd_local.training.interruption import Interrupted, Interruption
from kd_local.training.records import TrainingPlan
from tests.support import tiny

OPTIMIZER = optax.sgd(0.05, momentum=0.9)
METHOD = EndToEnd(tiny.network(), OPTIMIZER)
METHODS = {"end to end": METHOD, "contsup": ContSup(cut(tiny.network(), 2, classes=4, context="E"), OPTIMIZER)}
DATA = tiny.data(43, 13, validation=9)  # five full batches of 8, and one of 3


def calls(plan, full_steps, steps_per_call):
    batches = (HostBatch(step, np.arange(8), None) for step in range(plan.first_step, 10**6))
    sizes = call_sizes(plan, full_steps, steps_per_call)
    return [[batch.step for batch in call] for call in grouped(batches, sizes)]


def test_several_steps_begin_at_multiples_within_an_epoch():
    plan = TrainingPlan(0, 13, 6, 8)
    assert calls(plan, 5, 2) == [[0, 1], [2, 3], [4], [5], [6, 7], [8, 9], [10], [11], [12]]
    assert calls(plan, 5, 5) == [[0, 1, 2, 3, 4], [5], [6, 7, 8, 9, 10], [11], [12]]
    for first in range(14):  # a resumed run computes the calls of the whole run from the next multiple on
        resumed = calls(replace(plan, first_step=first), 5, 2)
        assert [step for call in resumed for step in call] == list(range(first, 13))
        assert [call for call in resumed if len(call) > 1] == [
            call for call in calls(plan, 5, 2) if len(call) > 1 and call[0] >= first
        ]


@pytest.mark.parametrize(("steps", "single"), [(5, False), (1, True), (2, True), (4, True)])
def test_single_steps_of_full_batches(steps, single):
    assert takes_single_steps(TrainingPlan(0, 12, 6, 8), 5, steps) == single
    # An epoch that ends early.
    assert takes_single_steps(TrainingPlan(0, 9, 6, 8), 5, steps)


def test_a_cpu_takes_single_steps_by_default():
    assert default_options(TrainingPlan(0, 12, 6, 8), 5, device_mesh(), on_devices=True) == StepOptions()


@pytest.mark.parametrize(("last_step", "steps"), [(3900, 39), (10, 10), (1, 1)])
def test_a_short_run_on_an_accelerator_has_calls_that_fit(monkeypatch, last_step, steps):
    """As if the devices were accelerators."""
    monkeypatch.setattr(calls_module, "_on_cpu", lambda mesh: False)
    plan = TrainingPlan(0, last_step, 391, 128)
    options = default_options(plan, 390, device_mesh(), on_devices=True)
    assert options == (StepOptions(JOINED, steps) if steps > 1 else StepOptions())
    check_calls(plan, 390, options.steps_per_call)


@pytest.mark.parametrize(("full_steps", "steps"), [(390, 39), (48, 48), (22, 22), (781, 50), (1, 1), (97, 50)])
def test_by_default_calls_divide_an_epoch(full_steps, steps):
    assert steps_that_divide(full_steps) == steps


def equal(one, other, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), one, other)


def timeless(records):
    return [replace(record, seconds=0.0, images_per_second=0.0, data_wait_seconds=0.0) for record in records]


class Steps:
    on_epoch = staticmethod(lambda record: None)

    def __init__(self, stop_at=None, interruption=None):
        self.seen, self.stop_at, self.interruption = [], stop_at, interruption

    def on_start(self, plan):
        self.plan = plan

    def on_step(self, record):
        self.seen.append(record)
        if record.step == self.stop_at:
            self.interruption.received = 15


@pytest.mark.usually("end to end-1-True")
@pytest.mark.parametrize("on_devices", [False, True])
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("name", METHODS)
def test_several_steps_per_call_train_as_single_steps(name, devices, on_devices):
    method, mesh, one, several = METHODS[name], device_mesh(devices), Steps(), Steps()
    arguments = {"epochs": 2, "batch_size": 8, "mesh": mesh}
    joined = partial(StepOptions, form=JOINED)
    last = method.programs()[-1].name
    whole = train(method, DATA, **arguments, observers=(one,))  # an executable for each module
    called = train(
        method, DATA, **arguments, options=joined(steps_per_call=2), on_devices=on_devices, observers=(several,)
    )
    equal(called.state, whole.state, rtol=1e-4, atol=1e-6)
    assert [record.step for record in several.seen] == list(range(1, 13))
    for a, b in zip(one.seen, several.seen, strict=True):
        assert a.train[last] == pytest.approx(b.train[last], rel=1e-5)
    for a, b in zip(whole.records, called.records, strict=True):
        assert a.test.accuracy == b.test.accuracy and a.test.loss == pytest.approx(b.test.loss, rel=1e-5)
        assert a.train[last]["loss"] == pytest.approx(b.train[last]["loss"], rel=1e-5)
    images, batches = {1: 43, 4: 11}[devices], 2 + 2  # of training; of validation and test, padded to whole batches
    held = images * (8 * 8 + 4) + batches * (8 // devices) * (8 * 8 + 4 + 1)
    assert called.resident_bytes == (held if on_devices else 0)
    assert called.peak_bytes > whole.peak_bytes


@pytest.mark.usually("3")
@pytest.mark.parametrize("stop_at", [1, 3, 5, 8])
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, stop_at):
    arguments = {"epochs": 2, "batch_size": 8, "seed": 3, "options": StepOptions(JOINED, 2), "on_devices": True}
    whole = train(METHOD, DATA, **arguments)
    interruption = Interruption()
    watch = Steps(stop_at, interruption)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(Interrupted) as stopped:
        train(METHOD, DATA, **arguments, checkpoints=checkpoints, observers=(watch,), interruption=interruption)
    assert stop_at <= stopped.value.step < 12
    with Checkpoints(tmp_path) as checkpoints:
        rest = train(METHOD, DATA, **arguments, checkpoints=checkpoints)
    jax.tree.map(np.testing.assert_array_equal, whole.state, rest.state)
    assert timeless(whole.records)[-len(rest.records) :] == timeless(rest.records)


@pytest.mark.exhaustive
def test_a_run_of_single_steps_goes_on_with_calls_of_several(tmp_path):
    """From a step that is no multiple of the steps of a call."""
    arguments = {"epochs": 2, "batch_size": 8}
    with Checkpoints(tmp_path) as checkpoints:
        train(METHOD, DATA, **arguments, steps=3, checkpoints=checkpoints)
        rest = train(METHOD, DATA, **arguments, options=StepOptions(JOINED, 2), checkpoints=checkpoints)
    equal(rest.state, train(METHOD, DATA, **arguments).state, rtol=1e-4, atol=1e-6)


@pytest.mark.exhaustive
def test_extra_tensors_of_each_step():
    """The logits of a cached teacher, and the epoch, which the weights of Block-KD rise with."""
    like = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    teacher = Teacher(tiny.network(), tiny.network().init(jax.random.key(1), like))
    for name in ("block_kd", "crd"):
        options = {"negatives": 8} if name == "crd" else {}
        method = Distillation(tiny.network(), (teacher,), OBJECTIVES[name](**options), optax.sgd(1e-3), examples=43)
        whole = train(method, DATA, epochs=2, batch_size=8)
        called = train(method, DATA, epochs=2, batch_size=8, options=StepOptions(JOINED, 5), on_devices=True)
        equal(called.state, whole.state, rtol=1e-4, atol=1e-6)


def test_the_step_that_diverged_is_named():
    diverging = EndToEnd(tiny.network(), optax.sgd(1e30))
    with pytest.raises(NotFiniteError) as error:
        train(diverging, DATA, epochs=1, batch_size=8, options=StepOptions(JOINED, 5))
    assert error.value.step in (2, 3, 5)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("batch", [8, 3])
def test_devices_give_the_images_of_a_batch(devices, batch):
    mesh = device_mesh(devices)
    source = OnDevices.of(DATA.train, mesh)
    chosen = np.random.default_rng(0).permutation(43)[:batch].astype(np.int32)
    given = source.put(chosen, batch, stacked=False)
    images, labels = jax.jit(partial(source.rows, mesh))(source.resident, given)
    assert images.dtype == np.uint8 and images.sharding.is_fully_replicated == (devices == 1 or batch == 3)
    np.testing.assert_array_equal(images, DATA.train.images[chosen])
    np.testing.assert_array_equal(labels, DATA.train.labels[chosen])


@pytest.mark.long
@pytest.mark.usually("13-4")
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("images", [3, 13, 16])
def test_images_on_devices_are_evaluated_as_those_of_the_host(devices, images):
    """Neither 3 nor 13 images are whole batches, or a multiple of the devices."""
    method, mesh = METHODS["contsup"], device_mesh(devices)
    state = method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32))
    of_host, of_devices = (
        Evaluator(method, tiny.data(8, images, validation=5), batch_size=8, mesh=mesh, on_devices=held)(state)
        for held in (False, True)
    )
    for name in ("test", "validation"):
        one, other = of_host[name], of_devices[name]
        assert one.accuracy == other.accuracy and one.loss == pytest.approx(other.loss, rel=1e-6)
        assert one.exits.keys() == other.exits.keys() and one.exits
        for key in one.exits:
            assert one.exits[key].accuracy == other.exits[key].accuracy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": StepOptions(JOINED, 6)}, "steps_per_call is 6, but an epoch of this run has 5 steps"),
        ({"options": StepOptions(JOINED, 4), "steps": 3}, "this run has 3 steps"),
        ({"options": StepOptions(JOINED, 2), "mesh": device_mesh(1, 2)}, "use 1, or a single group"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        train(METHOD, DATA, epochs=1, batch_size=8, **arguments)


def test_refused_options():
    with pytest.raises(ValueError, match="several steps per call need the form 'joined'"):
        StepOptions(steps_per_call=2)
    with pytest.raises(ValueError, match="steps_per_call is 0: use a whole number from 1"):
        StepOptions(JOINED, 0)


class Streamed:
    """Images that are not in memory."""

    shape = (8, 8, 1)
    __len__ = lambda self: 43
    training_batches = evaluation_batches = lambda *_, **__: iter(())


def test_streamed_images_cannot_be_held_on_the_devices():
    with pytest.raises(ValueError, match="streamed images cannot be held"):
        image_source(Streamed(), device_mesh(), WHOLE, on_devices=True)
