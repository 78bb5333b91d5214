"""SGD with two gradients: by hand, against SGD with one, and through a run that stops in between."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import OBJECTIVES, BlockKD, Combined, Distillation, Teacher
from kd_local.local import HPFF, ContSup, EndToEnd, PairTraining, cut
from kd_local.parallel import StepOptions, compile_step, device_mesh
from kd_local.training import Checkpoints, make_optimizer, make_schedule, train
from kd_local.two_gradients import TwoGradients, two_gradients
from tests.support import tiny

KEY = jax.random.key(5)
LIKE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
NETWORK = tiny.network(4)
RATES = (0.5, 0.25, 0.125)


def rates(update):
    return jnp.asarray(RATES)[update]


def distillation(objective, optimizer, classes: int = 4) -> Distillation:
    stages = {"whole_network": isinstance(objective, OBJECTIVES["fcfd"])}  # whose paths need three stages
    network = tiny.network(classes, width=6, **stages)
    teacher = Teacher(network, tiny.variables(network, 3, (8, 8, 1)))
    return Distillation(tiny.network(classes, **stages), (teacher,), objective, optimizer, examples=8)


@pytest.mark.parametrize("nesterov", [False, True])
def test_three_updates_by_hand(nesterov):
    """Parameters with both gradients, with that of the teacher, with that of the labels, and with none."""
    optimizer = make_optimizer("sgd", rates, momentum=0.9, nesterov=nesterov, weight_decay=0.1, dot=0.075)
    gradients = {
        "both": ([1.0, -2.0, 0.5], [0.5, 3.0, -1.0]),
        "teacher": ([0.0, 0.0, 0.0], [2.0, -1.0, 4.0]),
        "task": ([3.0, 1.0, -2.0], [0.0, 0.0, 0.0]),
        "none": ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    }
    with jax.enable_x64(True):
        params = {name: np.full(2, 2.0) for name in gradients}
        state = optimizer.init(params)
        for step in range(3):
            task, of_teacher = ({n: np.array([g[i][step], 0.0]) for n, g in gradients.items()} for i in (0, 1))
            updates, state = jax.jit(optimizer.update)(TwoGradients(task, of_teacher), state, params)
            params = optax.apply_updates(params, updates)
    for name, pair in gradients.items():
        task_momentum, teacher_momentum = (0.825, 0.975) if name == "both" else (0.9, 0.9)
        w, a, b = 2.0, 0.0, 0.0
        for step, rate in enumerate(RATES):
            task, of_teacher = pair[0][step] + 0.1 * w, pair[1][step]
            a, b = task_momentum * a + task, teacher_momentum * b + of_teacher
            w -= rate * (task + of_teacher + task_momentum * a + teacher_momentum * b if nesterov else a + b)
        np.testing.assert_allclose(params[name][0], w, rtol=1e-12)


def test_a_step_with_one_gradient_has_the_mean_momentum():
    """The teacher's loss is 0 in the second step, so that only the momentum of the labels changes."""
    optimizer = make_optimizer("sgd", lambda _: 1.0, momentum=0.8, nesterov=False, weight_decay=0.0, dot=0.1)
    w = np.float32(0.0)
    state = optimizer.init(w)
    for task, of_teacher in ((1.0, 1.0), (1.0, 0.0)):
        pair = TwoGradients(np.float32(task), np.float32(of_teacher))
        updates, state = jax.jit(optimizer.update)(pair, state, w)
    assert float(updates) == pytest.approx(-((0.8 * 1 + 1) + 0.8 * 1))


def test_accumulation_averages_each_gradient():
    optimizer = make_optimizer(
        "sgd", rates, momentum=0.8, nesterov=False, weight_decay=0.1, dot=0.1, accumulate=2, batches_per_epoch=4
    )
    w, params = 2.0, np.float32(2.0)
    state = optimizer.init(params)
    a = b = 0.0
    batches = [(1.0, 4.0), (3.0, -2.0), (0.0, 1.0), (-2.0, 0.0)]
    for batch, (task, of_teacher) in enumerate(batches):
        pair = TwoGradients(np.float32(task), np.float32(of_teacher))
        updates, state = jax.jit(optimizer.update)(pair, state, params)
        params = np.asarray(optax.apply_updates(params, updates))
        if batch % 2:
            means = [np.mean([each[i] for each in batches[batch - 1 : batch + 1]]) for i in (0, 1)]
            a, b = 0.7 * a + means[0] + 0.1 * w, 0.9 * b + means[1]
            w -= RATES[batch // 2] * (a + b)
        assert float(params) == pytest.approx(w, abs=1e-6)


def test_gradients_of_two_losses_from_one_forward_pass():
    images, labels = tiny.batch(shape=(8, 8, 1), classes=4)
    variables = tiny.variables(NETWORK, 1, (8, 8, 1))

    def losses(params):
        logits, statistics = NETWORK.apply({**variables, "params": params}, images, train=True)
        cross_entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()
        return (cross_entropy, jnp.tanh(logits).sum()), statistics

    params = variables["params"]
    found, statistics = jax.jit(partial(two_gradients, losses))(params)
    for i, gradient in enumerate((found.task, found.teacher)):
        expected = jax.jit(jax.grad(lambda params, i=i: losses(params)[0][i]))(params)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradient, expected)
    assert jax.tree.structure(statistics) == jax.tree.structure(variables["batch_stats"])


def test_a_backward_pass_leaves_out_what_its_loss_does_not_depend_on():
    """The matrix products: forward 2, the loss of `a` 1 for its parameter, the loss of `b` 1 for its."""

    def losses(params):
        return (jnp.tanh(x @ params["a"]).sum(), jnp.tanh(x @ params["b"]).sum()), None

    x = jnp.ones((3, 3))
    jaxpr = jax.make_jaxpr(lambda params: two_gradients(losses, params)[0])({"a": x, "b": x})
    assert str(jaxpr).count("dot_general[") == 4


SETTINGS = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
OPTIONS = {"crd": {"negatives": 4}, "fitnet": {"stage": 1, "weight": 1.0}}
STEPPED = {
    **{name: kind(**OPTIONS.get(name, {})) for name, kind in OBJECTIVES.items()},
    "combined": Combined(((OBJECTIVES["dkd"](), 1.0), (BlockKD(alpha=0.3), 0.5))),
}
WITHOUT_THE_HEAD = {"at", "crd", "fitnet", "nst", "ofd", "pkt", "reviewkd", "rkd", "simkd", "sp", "vid"}
"""The objectives whose terms do not depend on the student's logits."""


def run_steps(objective, optimizer, *, count=3, mesh=None, options=StepOptions()):
    """The state after some steps in float64, and the metrics of the last."""
    images, labels = tiny.batch(8, shape=(8, 8, 1), classes=10)
    images = images.astype(jnp.float64)
    method = distillation(objective, optimizer, classes=10)
    state = method.init(jax.random.key(0), LIKE)
    state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
    offered = {
        "epoch": jnp.float32(4),
        "indices": jnp.arange(8, dtype=jnp.int32),
        "images_strong": images[:, ::-1] * 1.5,
    }
    extra = {name: offered[name] for name in method.programs()[0].reads if name in offered}
    step = compile_step(method, images, labels, extra, state=state, mesh=mesh, options=options)
    state = step.place(state)
    for _ in range(count):
        state, metrics = step(state, jnp.array(images), jnp.array(labels), KEY, extra)
    return jax.device_get(state), metrics


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", STEPPED)
@jax.numpy_dtype_promotion("standard")
def test_without_delta_a_step_is_that_of_plain_sgd(name):
    with jax.enable_x64(True):
        plain, metrics = run_steps(STEPPED[name], make_optimizer("sgd", lambda _: 0.05, **SETTINGS))
        two, of_two = run_steps(STEPPED[name], make_optimizer("sgd", lambda _: 0.05, **SETTINGS, dot=0.0))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), of_two, metrics)
    params, expected = (state["student"]["params"] for state in (two, plain))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12), params, expected)
    of_teacher = two["student"]["opt_state"][0].teacher
    taught = {name: any(x.any() for x in jax.tree.leaves(own)) for name, own in of_teacher["student"].items()}
    assert taught == {block: block != "head" or name not in WITHOUT_THE_HEAD for block in taught}


@pytest.mark.exhaustive
@jax.numpy_dtype_promotion("standard")
def test_several_devices_give_the_results_of_one():
    optimizer = make_optimizer("sgd", lambda _: 0.05, **SETTINGS, dot=0.09)
    with jax.enable_x64(True):
        one, _ = run_steps(BlockKD(), optimizer)
        sharded, _ = run_steps(BlockKD(), optimizer, mesh=device_mesh(2), options=StepOptions(shard="optimizer"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-11), sharded, one)


def run(**options):
    schedule = make_schedule("linear", 0.05, epochs=2, steps_per_epoch=2)
    method = distillation(OBJECTIVES["kd"](), make_optimizer("sgd", schedule, dot=0.05))
    return train(method, tiny.data(32, 8), epochs=2, batch_size=16, schedule=schedule, **options)


@pytest.mark.exhaustive
def test_a_run_that_stops_resumes_with_the_same_result(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        run(steps=3, checkpoints=checkpoints)
    with Checkpoints(tmp_path) as checkpoints:
        resumed = run(checkpoints=checkpoints)
    assert resumed.step == 4
    jax.tree.map(np.testing.assert_array_equal, resumed.state, run().state)


@pytest.mark.exhaustive
def test_several_steps_per_call_give_the_results_of_single_steps():
    together = run(options=StepOptions(form="joined", steps_per_call=2), on_devices=True)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5), together.state, run().state)


@pytest.mark.parametrize(
    "method",
    [
        lambda optimizer: EndToEnd(NETWORK, optimizer),
        lambda optimizer: ContSup(cut(NETWORK, 2, classes=4, context="R0", head="0c1f"), optimizer),
        lambda optimizer: PairTraining(cut(NETWORK, 2, classes=4, context="R0", head="0c1f"), HPFF(), optimizer),
    ],
)
@pytest.mark.untyped
def test_methods_with_one_gradient_refuse_it(method):
    optimizer = make_optimizer("sgd", rates, dot=0.075)
    with pytest.raises(ValueError, match="takes two gradients, of the labels and of a teacher .*computes one: use its"):
        method(optimizer)
    method(optimizer.plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dot": -0.1}, r"dot is -0.1: use a number in \[0, 0.5\], such as 0.075"),
        (
            {"dot": 0.1},
            r"dot is 0.1 with momentum 0.9: the momenta 0.8 and 1 must be in \[0, 1\), so use less than 0.1",
        ),
        ({"dot": 0.2, "momentum": 0.1}, "dot is 0.2 with momentum 0.1: the momenta -0.1 and 0.3 must be"),
        ({"dot": 0.05, "name": "adam"}, "dot is 0.05, but optimizer 'adam' has no momentum to change: leave it out"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**{"name": "sgd", "schedule": rates, **arguments})
