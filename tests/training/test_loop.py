from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.contract import Program
from kd_local.data import normalise
from kd_local.local import ContSup, EndToEnd, cut
from kd_local.memory import footprint, target
from kd_local.models import resnet
from kd_local.parallel import device_mesh
from kd_local.training import Checkpoints, NotFiniteError, evaluate, train
from kd_local.training.interruption import Interrupted, Interruption
from kd_local.training.records import Scores, TrainingPlan
from tests.support import tiny

NETWORK = tiny.network()
OPTIMIZER = optax.sgd(0.05, momentum=0.9)
METHOD = ContSup(cut(NETWORK, 2, classes=4, context="E"), OPTIMIZER)


@pytest.fixture(scope="module")
def data():
    """43 images to train on, 13 to test and 9 to validate on."""
    return tiny.data(43, 13, validation=9)


class Watch:
    def __init__(self, stop_at=None, interruption=None):
        self.steps, self.epochs, self.stop_at, self.interruption = [], [], stop_at, interruption

    def on_start(self, plan):
        self.plan = plan

    def on_step(self, record):
        self.steps.append(record)
        if record.step == self.stop_at:
            self.interruption.received = 15

    def on_epoch(self, record):
        self.epochs.append(record)


def test_it_learns_and_reports_every_step_and_epoch(data):
    watch = Watch()
    schedule = optax.constant_schedule(0.05)
    method = ContSup(cut(resnet(8, classes=4, widths=(4, 4, 8, 8)), 2, classes=4, context="E"), OPTIMIZER)
    result = train(method, data, epochs=8, batch_size=16, observers=(watch,), schedule=schedule)
    assert [record.step for record in watch.steps] == list(range(1, 25))  # 16, 16 and 11 images an epoch
    assert [record.step for record in result.records] == [3 * epoch for epoch in range(1, 9)]
    assert result.records == watch.epochs
    assert result.step == 24 and watch.plan == TrainingPlan(0, 24, 3, 16)
    assert [record.images for record in result.records] == [43] * 8
    first, last = result.records[0], result.records[-1]
    for module in ("module00", "module01"):
        assert last.train[module]["loss"] < first.train[module]["loss"]
    assert last.test.accuracy > 0.7 and last.validation.accuracy > 0.7
    assert last.test.exits["module01"] == Scores(last.test.loss, last.test.accuracy)
    assert last.learning_rate == pytest.approx(0.05)
    # The epoch's mean weighs each batch by its images.
    losses = [record.train["module00"]["loss"] for record in watch.steps[:3]]
    assert first.train["module00"]["loss"] == pytest.approx(np.average(losses, weights=[16, 16, 11]), rel=1e-6)


def test_evaluation_counts_every_image_once(data):
    state = jax.tree.map(jnp.array, METHOD.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    logits = np.asarray(jax.jit(METHOD.logits)(state, normalise(data.augmentation, jnp.asarray(data.test.images))))
    right = (logits.argmax(-1) == data.test.labels).mean()
    shifted = logits - logits.max(-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(13), data.test.labels]
    for batch_size, devices in ((4, 1), (64, 1), (8, 8)):
        results = evaluate(METHOD, state, data, batch_size=batch_size, mesh=device_mesh(devices))
        assert results["test"].accuracy == pytest.approx(right)
        assert results["test"].loss == pytest.approx(losses.mean(), rel=1e-5)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.usually("4")
@pytest.mark.parametrize("stop_at", [1, 4, 6])
@pytest.mark.exhaustive
def test_an_interrupted_run_ends_like_an_uninterrupted_one(data, tmp_path, stop_at):
    whole = train(METHOD, data, epochs=3, batch_size=16, seed=3)
    interruption = Interruption()
    watch = Watch(stop_at, interruption)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(Interrupted) as stopped:
        train(
            METHOD, data, epochs=3, batch_size=16, seed=3, checkpoints=checkpoints, observers=(watch,),
            interruption=interruption,
        )  # fmt: skip
    assert stop_at <= stopped.value.step < 9
    with Checkpoints(tmp_path) as checkpoints:
        rest = train(METHOD, data, epochs=3, batch_size=16, seed=3, checkpoints=checkpoints)
    equal(whole.state, rest.state)
    timeless = lambda record: replace(record, seconds=0.0, images_per_second=0.0, data_wait_seconds=0.0)
    assert [timeless(r) for r in whole.records[-len(rest.records) :]] == [timeless(r) for r in rest.records]
    with Checkpoints(tmp_path) as checkpoints:
        again = train(METHOD, data, epochs=3, batch_size=16, seed=3, checkpoints=checkpoints)
    assert again.records == [] and again.step == 9
    equal(whole.state, again.state)


@pytest.mark.exhaustive
def test_the_seed_determines_the_state(data):
    one, same, other = (train(METHOD, data, epochs=1, steps=2, batch_size=16, seed=seed).state for seed in (1, 1, 2))
    equal(one, same)
    params = lambda state: state["module00"]["params"]["blocks"]["0"]["conv"]["conv"]["kernel"]
    assert not (params(one) == params(other)).any()


@pytest.mark.exhaustive
def test_a_mesh_gives_the_results_of_one_device(data):
    one = train(METHOD, data, epochs=2, batch_size=16)
    eight = train(METHOD, data, epochs=2, batch_size=16, mesh=device_mesh(8))
    for a, b in zip(one.records, eight.records, strict=True):
        assert a.train["module01"]["loss"] == pytest.approx(b.train["module01"]["loss"], rel=1e-3)
        assert a.test.loss == pytest.approx(b.test.loss, rel=1e-2)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(data, tmp_path):
    method = ContSup(cut(NETWORK, 2, classes=4, context="R0"), optax.sgd(1e30))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(NotFiniteError, match=r"the loss of module0\d is (nan|inf) at step \d"):
            train(method, data, epochs=3, batch_size=16, checkpoints=checkpoints, checkpoint_seconds=0.0)
        step, tree = checkpoints.restore_latest(
            {"state": method.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))), "sums": jnp.zeros(4)}
        )
    assert step >= 1
    assert np.isfinite(tree["sums"]).all()


def test_end_to_end_goes_through_the_same_loop(data):
    result = train(EndToEnd(NETWORK, OPTIMIZER), data, epochs=1, batch_size=16)
    assert set(result.records[0].train["network"]) == {"loss", "accuracy"}


@dataclass(frozen=True)
class CountsEpochs:
    """Two programs with a parameter each. Both read `epoch`; the second also reads a tensor of the first."""

    deployed_program = None

    def init(self, rng, images):
        return {name: {"params": jnp.zeros(()), "opt_state": ()} for name in ("first", "second")}

    def programs(self):
        def first(part, frozen, tensors, rng, constants):
            images, epoch = tensors
            return {**part, "params": part["params"] + epoch}, (images.mean(axis=(1, 2, 3)),), {"loss": epoch}

        def second(part, frozen, tensors, rng, constants):
            means, epoch = tensors
            return {**part, "params": part["params"] + epoch}, (), {"loss": epoch + 0 * means.mean()}

        return (
            Program("first", "first", first, ("images", "epoch"), ("means",)),
            Program("second", "second", second, ("means", "epoch")),
        )

    def logits(self, state, images):
        return jnp.zeros((len(images), 4)) + state["first"]["params"]

    def exits(self, state, images):
        return {}

    def deployed(self, state):
        return state["first"]["params"]


@pytest.mark.long
@pytest.mark.usually("mesh0", "mesh3")
@pytest.mark.parametrize("mesh", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_a_method_may_read_the_epoch(data, mesh):
    """Also in the last, smaller batch of an epoch, which two devices do not divide."""
    result = train(CountsEpochs(), data, epochs=3, batch_size=16, mesh=device_mesh(*mesh))
    for program in ("first", "second"):
        assert result.state[program]["params"] == 3 * (1 + 2 + 3)
        assert [record.train[program]["loss"] for record in result.records] == [1, 2, 3]


def test_the_footprint_counts_the_epoch(data):
    found = footprint(CountsEpochs(), (8, 8, 1), 16, target("local", devices=2))
    image, label, scalar = 8 * 8 * 8 * 4, 8 * 4, 4
    # The labels are carried although no program reads them.
    assert [piece.carried for piece in found.pieces] == [image + label + scalar + label, label + scalar + label]
