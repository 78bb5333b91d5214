import jax
import numpy as np
import optax
import pytest

from kd_local.training import make_optimizer, make_schedule
from kd_local.training.schedules import compressed


def at(schedule, step):
    return float(schedule(np.int32(step)))


def test_published_rates_of_contsup():
    schedule = make_schedule("contsup", 0.8, epochs=160, steps_per_epoch=49, warmup_epochs=10)
    for epoch, rate in [(1, 0.01), (5, 0.32523), (10, 0.71408), (11, 0.79071), (80, 0.4), (160, 0.0)]:
        for step in (49 * (epoch - 1), 49 * epoch - 1):
            assert at(schedule, step) == pytest.approx(rate, abs=5e-6)


# Optax's own schedules mix integers and floats.
@jax.numpy_dtype_promotion("standard")
def test_cosine_after_a_linear_warmup():
    schedule = make_schedule("cosine", 1.0, epochs=10, steps_per_epoch=10, warmup_epochs=2, warmup_rate=0.0)
    assert [at(schedule, step) for step in (0, 10, 20, 60, 100)] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-6)


@jax.numpy_dtype_promotion("standard")
def test_piecewise_constant_and_linear():
    piecewise = make_schedule("piecewise", 1.0, epochs=9, steps_per_epoch=2, milestones=(3, 6), decay=0.5)
    assert [at(piecewise, step) for step in (0, 5, 6, 11, 12)] == [1, 1, 0.5, 0.5, 0.25]
    warm = make_schedule(
        "piecewise", 1.0, epochs=9, steps_per_epoch=2, milestones=(3,), decay=0.5, warmup_epochs=1, warmup_rate=0.0
    )
    assert [at(warm, step) for step in (0, 1, 2, 5, 6)] == [0, 0.5, 1, 1, 0.5]
    constant = make_schedule("constant", 0.3, epochs=9, steps_per_epoch=2)
    assert at(constant, 17) == pytest.approx(0.3)
    linear = make_schedule("linear", 1.0, epochs=5, steps_per_epoch=2)
    assert [at(linear, step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("name", ["contsup", "cosine", "piecewise"])
def test_a_compressed_schedule_keeps_the_shares_of_warmup_and_milestones(name):
    arguments = {"milestones": (5, 8)} if name == "piecewise" else {}
    whole = make_schedule(name, 0.4, epochs=10, steps_per_epoch=100, warmup_epochs=2, **arguments)
    short, long = (compressed(whole, updates=1000, to=to) for to in (250, 2000))
    for update in (0, 40, 99, 123, 249):
        np.testing.assert_allclose(short(update), whole(4 * update), rtol=1e-6)
        np.testing.assert_allclose(long(8 * update + 1), whole(4 * update), rtol=1e-6)
    assert compressed(whole, updates=1000, to=1000) is whole
    with pytest.raises(ValueError, match="schedule_steps is 0"):
        compressed(whole, updates=1000, to=0)


def test_a_run_shorter_than_its_warmup_stays_in_it():
    schedule = make_schedule("contsup", 0.8, epochs=2, steps_per_epoch=3, warmup_epochs=10)
    # e=1: 0 + .01 * 10/10; e=2: base(2) = 0, so .01 * 9/10.
    assert [at(schedule, step) for step in (0, 3)] == pytest.approx([0.01, 0.009], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cosine", {"milestones": (3, 6)}, r"milestones is \(3, 6\), but schedule 'cosine' has none: leave it out, or"),
        ("contsup", {"decay": 0.1}, "decay is 0.1, but schedule 'contsup' has none: leave it out, or use piecewise"),
        ("linear", {"decay": 0.5}, "decay is 0.5, but schedule 'linear' has none"),
        ("constant", {"milestones": (3,)}, "milestones is .*, but schedule 'constant' has none"),
        ("contsup", {"warmup_rate": 0.01}, "warmup_rate is 0.01, but warmup_epochs is 0: leave it out"),
        ("piecewise", {"warmup_rate": 0.1, "milestones": (3,)}, "warmup_rate is 0.1, but warmup_epochs is 0"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(name, 0.1, epochs=9, steps_per_epoch=2, **arguments)


def test_any_schedule_accepts_no_milestones_and_no_warmup_rate():
    make_schedule("cosine", 0.1, epochs=9, steps_per_epoch=2, milestones=(), warmup_rate=0.0)


def test_defaults_are_the_schedules_own():
    given = {"epochs": 9, "steps_per_epoch": 2, "warmup_epochs": 1, "milestones": (3,)}
    own, explicit = (
        make_schedule("piecewise", 1.0, **given, **more) for more in ({}, {"decay": 0.1, "warmup_rate": 0.01})
    )
    with jax.numpy_dtype_promotion("standard"):
        assert [at(own, step) for step in (0, 1, 5, 6)] == [at(explicit, step) for step in (0, 1, 5, 6)]
        assert at(own, 0) == pytest.approx(0.01) and at(own, 6) == pytest.approx(0.1)


def test_the_schedule_goes_through_an_optimizer():
    schedule = make_schedule("contsup", 0.8, epochs=20, steps_per_epoch=1, warmup_epochs=10)
    optimizer = make_optimizer("sgd", schedule, momentum=0.0, nesterov=False, weight_decay=0.0)
    params = np.float32(1.0)
    state = optimizer.init(params)
    updates, _ = optimizer.update(np.float32(1.0), state, params)
    assert float(updates) == pytest.approx(-0.01)


def test_sgd_equals_that_of_pytorch():
    """Two steps of SGD with Nesterov momentum .9 and weight decay .1 by hand, as torch.optim.SGD computes them."""
    optimizer = make_optimizer("sgd", optax.constant_schedule(0.5), weight_decay=0.1)
    w, velocity = 2.0, 0.0
    params = np.float32(w)
    state = optimizer.init(params)
    for gradient in (1.0, -3.0):
        updates, state = optimizer.update(np.float32(gradient), state, params)
        params = np.asarray(optax.apply_updates(params, updates))
        g = gradient + 0.1 * w
        velocity = 0.9 * velocity + g
        w -= 0.5 * (g + 0.9 * velocity)
        assert float(params) == pytest.approx(w, rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb", "lion"])
@pytest.mark.parametrize(("argument", "value"), [("momentum", 0.9), ("nesterov", True)])
def test_momentum_is_refused_by_optimizers_that_have_none(name, argument, value):
    with pytest.raises(
        ValueError, match=f"{argument} is {value}, but optimizer '{name}' has none: leave it out, or use"
    ):
        make_optimizer(name, optax.constant_schedule(0.5), **{argument: value})
    make_optimizer(name, optax.constant_schedule(0.5), **{argument: type(value)()})


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="nesterov is True, but momentum is 0: set a momentum"):
        make_optimizer("sgd", optax.constant_schedule(0.5), momentum=0.0, nesterov=True)
    make_optimizer("sgd", optax.constant_schedule(0.5), momentum=0.0)
