"""Gradients accumulated over batches: against whole batches, by hand, and through a run that stops in between."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from experiments.configs.default import get_config
from experiments.from_config.experiment import build
from kd_local.distill import OBJECTIVES, Distillation, Teacher
from kd_local.local import ContSup, EndToEnd, cut
from kd_local.models.ends import Classifier
from kd_local.networks import Network
from kd_local.parallel import compile_step
from kd_local.training import OPTIMIZERS, Checkpoints, make_optimizer, make_schedule, train
from kd_local.training.schedules import by_batches, updates_per_epoch
from tests.support import tiny

KEY = jax.random.key(5)
SHAPE = (8, 8, 1)
RATES = (0.5, 0.25, 0.125, 0.0625)


class Smooth(nn.Module):
    """A block without batch statistics, in which images do not see each other."""

    features: int

    @nn.compact
    def __call__(self, x, *, train):
        return jnp.tanh(nn.Conv(self.features, (3, 3))(x))


NETWORK = Network.of({"stem": Smooth(4), "stage1/0": Smooth(4), "stage2/0": Smooth(6), "head": Classifier(4)})
LIKE = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)


def halving(update):
    return jnp.asarray(RATES, jnp.float32)[update]


def methods(optimizer):
    teacher = Teacher(NETWORK, tiny.variables(NETWORK, 9, LIKE.shape[1:]))
    return {
        "end_to_end": EndToEnd(NETWORK, optimizer),
        "contsup": ContSup(cut(NETWORK, 3, classes=4, context="R0", head="0c1f"), optimizer),
        "kd": Distillation(NETWORK, (teacher,), OBJECTIVES["kd"](), optimizer),
    }


def steps(method, sizes):
    """The state before and after each of these batches of the same 16 images, in float64."""
    random = np.random.default_rng(0)
    images, labels = random.standard_normal((16, *SHAPE)), (np.arange(16) % 4).astype(np.int32)
    state = method.init(jax.random.key(0), LIKE)
    state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
    step = compile_step(method, images[: sizes[0]], labels[: sizes[0]], state=state)
    states, start = [jax.tree.map(np.array, state)], 0
    for size in sizes:
        chosen = slice(start, start + size)
        state, _ = step(state, jnp.asarray(images[chosen]), jnp.asarray(labels[chosen]), KEY)
        states.append(jax.tree.map(np.array, state))
        start += size
    return states


def params_of(state):
    return {name: part["params"] for name, part in state.items()}


@pytest.mark.usually("end_to_end")
@pytest.mark.parametrize("name", ["end_to_end", "contsup", "kd"])
@jax.numpy_dtype_promotion("standard")
def test_accumulated_batches_give_the_update_of_one_large_batch(name):
    with jax.enable_x64(True):
        whole, parts = (
            steps(methods(make_optimizer("sgd", halving, nesterov=False, accumulate=n))[name], [8 // n] * 2 * n)
            for n in (1, 2)
        )
    for a, b in zip(jax.tree.leaves(params_of(whole[-1])), jax.tree.leaves(params_of(parts[-1])), strict=True):
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)
    for waiting, before in ((1, 0), (3, 2)):
        jax.tree.map(np.testing.assert_array_equal, params_of(parts[waiting]), params_of(parts[before]))
    for part in parts[0].keys() - {"teacher0"}:
        moved = jax.tree.map(lambda a, b: (a != b).any(), parts[0][part]["params"], parts[2][part]["params"])
        assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_accumulation_by_hand(dtype):
    """Epochs of three batches, two an update: means of 1 and -3, 5 alone, means of 2 and 4, -1 alone."""
    with jax.enable_x64(dtype == np.float64):
        optimizer = make_optimizer(
            "sgd", halving, momentum=0.9, nesterov=False, weight_decay=0.1, accumulate=2, batches_per_epoch=3
        )
        w, velocity, params = 2.0, 0.0, dtype(2.0)
        state = optimizer.init(params)
        means = iter([(-1.0, 0.5), (5.0, 0.25), (3.0, 0.125), (-1.0, 0.0625)])
        for batch, gradient in enumerate((1.0, -3.0, 5.0, 2.0, 4.0, -1.0)):
            updates, state = jax.jit(optimizer.update)(dtype(gradient), state, params)
            params = np.asarray(optax.apply_updates(params, updates))
            if batch not in (0, 3):
                mean, rate = next(means)
                velocity = 0.9 * velocity + mean + 0.1 * w
                w -= rate * velocity
            assert params.dtype == dtype
            assert float(params) == pytest.approx(w, abs=1e-6 if dtype == np.float32 else 1e-14)


# Optax's own Adam mixes integers and floats.
@pytest.mark.parametrize("name", OPTIMIZERS)
@jax.numpy_dtype_promotion("standard")
def test_accumulation_keeps_the_optimizers_state_and_update(name):
    params = {"a": np.float32([1, 2]), "b": np.float32(3)}
    alone, once, thrice = (
        make_optimizer(name, halving, **given) for given in ({}, {"accumulate": 1}, {"accumulate": 3})
    )
    like = jax.tree.structure(alone.init(params))
    assert jax.tree.structure(once.init(params)) == like
    state = thrice.init(params)
    assert jax.tree.structure(state.inner_opt_state) == like
    for _ in range(3):
        updates, state = jax.jit(thrice.update)(params, state, params)
    expected, _ = alone.update(params, alone.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def convolutions(jaxpr, *, inside):
    """The number of convolutions; with `inside`, only of those inside a branch."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "conv_general_dilated" and not inside
        branch = equation.primitive.name == "cond"
        for sub in jaxprs_in_params(equation.params):
            count += convolutions(sub, inside=inside and not branch)
    return count


def test_no_gradient_is_computed_inside_a_branch():
    method = methods(make_optimizer("sgd", halving, accumulate=2))["end_to_end"]
    (program,) = method.programs()
    state = method.init(jax.random.key(0), LIKE)
    arguments = (state["network"], (), (jnp.zeros((4, *SHAPE)), jnp.zeros(4, jnp.int32)), KEY, jnp.zeros(0))
    jaxpr = jax.make_jaxpr(program.function)(*arguments).jaxpr
    assert convolutions(jaxpr, inside=False) >= 6
    assert convolutions(jaxpr, inside=True) == 0


def test_updates_per_epoch_and_schedules_by_batches():
    assert [updates_per_epoch(7, n) for n in (1, 2, 3, 7)] == [7, 4, 3, 1]
    of_batch = by_batches(lambda update: update, batches_per_epoch=7, accumulate=3)
    assert [of_batch(batch) for batch in range(15)] == [0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate": 0}, r"accumulate is 0: use a whole number from 1 .*; 1 is an update for every batch"),
        ({"accumulate": 4, "batches_per_epoch": 3}, "accumulate is 4 for 3 batches: use 1 .* to 3, or smaller batches"),
    ],
)
def test_bad_accumulation_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer("sgd", halving, **arguments)


def test_epochs_keep_their_rates_in_an_experiment():
    config = get_config()
    config.optimizer.warmup_epochs = 2
    config.epochs = 4
    plain = build(config)
    config.optimizer.accumulate = 5  # 23 batches an epoch
    accumulating = build(config)
    batches = range(4 * 23)
    rates = [float(plain.schedule(batch)) for batch in batches]
    assert len(set(rates)) == 4
    assert [float(accumulating.schedule(batch)) for batch in batches] == rates
    state = jax.eval_shape(accumulating.method.init, KEY, jax.ShapeDtypeStruct((1, *accumulating.shape), jnp.float32))
    assert all(isinstance(part["opt_state"], optax.MultiStepsState) for part in state.values())


@pytest.fixture(scope="module")
def data():
    """43 images to train on: batches of 16, 16 and 11."""
    return tiny.data(43, 8)


def run(data, **options):
    schedule = make_schedule("linear", 0.3, epochs=3, steps_per_epoch=2)
    optimizer = make_optimizer("sgd", schedule, accumulate=2, batches_per_epoch=3)
    rates = by_batches(schedule, batches_per_epoch=3, accumulate=2)
    return train(methods(optimizer)["contsup"], data, epochs=3, batch_size=16, schedule=rates, **options)


@pytest.fixture(scope="module")
def whole(data):
    return run(data)


def test_the_recorded_rate_is_the_rate_of_the_update(whole):
    # The last updates of the epochs are numbers 1, 3 and 5 of six.
    expected = [0.3 * (1 - update / 6) for update in (1, 3, 5)]
    assert [record.learning_rate for record in whole.records] == pytest.approx(expected)
    for part in whole.state.values():
        counts = [x for x in jax.tree.leaves(part["opt_state"].inner_opt_state) if x.dtype == jnp.int32]
        assert [int(count) for count in counts] == [6]
        assert int(part["opt_state"].mini_step) == 0


@pytest.mark.exhaustive
@pytest.mark.usually("1")
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_stopped_within_an_update_resumes_with_the_same_result(data, whole, tmp_path, stop):
    with Checkpoints(tmp_path) as checkpoints:
        first = run(data, steps=stop, checkpoints=checkpoints)
    for part in first.state.values():
        assert int(part["opt_state"].mini_step) == 1
        assert any(x.any() for x in jax.tree.leaves(part["opt_state"].acc_grads))
    with Checkpoints(tmp_path) as checkpoints:
        rest = run(data, checkpoints=checkpoints)
    assert rest.step == 9
    jax.tree.map(np.testing.assert_array_equal, rest.state, whole.state)
