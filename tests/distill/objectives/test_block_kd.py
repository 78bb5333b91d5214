"""Block-KD against a plain implementation of its equations, which applies one network after the other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import BlockKD, Distillation, Pair, Teacher, output_shapes
from kd_local.distill.stepping_stones import connector_to
from kd_local.models import create, resnet
from kd_local.networks import Network, apply_block, of_block
from kd_local.parallel import compile_step, plan_step
from tests.support import tiny

STUDENT = resnet(8, classes=5, widths=(4, 4, 6, 8))
TEACHER_NETWORK = resnet(14, classes=5, widths=(4, 6, 8, 12))
SHAPE = (8, 8, 3)
LIKE = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
STAGES = ("stage1", "stage2", "stage3")
TEACHER = Teacher(TEACHER_NETWORK, tiny.variables(TEACHER_NETWORK, 3))


def method(objective: BlockKD, student: Network = STUDENT, teacher: Teacher = TEACHER) -> Distillation:
    return Distillation(student, (teacher,), objective, optax.sgd(0.1))


def batch(size: int = 6) -> tuple[jax.Array, jax.Array]:
    images = np.random.default_rng(1).standard_normal((size, *SHAPE), np.float32)
    return jnp.asarray(images), jnp.arange(size, dtype=jnp.int32) % 5


def plain_loss(params, batch_stats, objective: BlockKD, teacher_variables, images, labels):
    """L = alpha L_task + beta L_distill + gamma L_cross from whole networks: S, T and each N_i on its own."""

    def logits_of(network: Network, variables, x, train):
        return network.apply(network.select(variables), x, train=train)[0]

    def cross_entropy(logits):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

    def distance(logits, target):
        t = objective.temperature
        p, q = jax.nn.log_softmax(target / t), jax.nn.log_softmax(logits / t)
        return t**2 * (jnp.exp(p) * (p - q)).sum(axis=1).mean()

    student, connectors = (
        of_block({"params": params, "batch_stats": batch_stats}, name) for name in ("student", "teacher0")
    )
    s = logits_of(STUDENT, student, images, True)
    t = jax.lax.stop_gradient(logits_of(TEACHER_NETWORK, teacher_variables, images, False))
    hybrids, weights = [], []
    for i in (1, 2, 3):
        stone = f"stone{i}"
        if stone not in params["teacher0"]:
            continue
        last = STUDENT.position(f"{STAGES[i - 1]}/0")
        first_part = STUDENT[: last + 1]
        feature = logits_of(first_part, student, images, True)
        connector = connector_to(Pair(STUDENT, TEACHER_NETWORK), output_shapes(TEACHER_NETWORK, LIKE), i)
        feature, _ = apply_block(connector, of_block(connectors, stone), feature, train=True)
        remaining = TEACHER_NETWORK[TEACHER_NETWORK.position(f"{STAGES[i - 1]}/1") + 1 :]
        hybrids.append(logits_of(remaining, teacher_variables, feature, False))
        weights.append(1 / 2 ** (3 - i))
    ensemble = sum(hybrids) / len(hybrids)
    if not objective.ensemble_gradient:
        ensemble = jax.lax.stop_gradient(ensemble)
    task, distill, cross = cross_entropy(s), distance(s, t), distance(s, ensemble)
    for w, n in zip(weights, hybrids, strict=True):
        task += w * cross_entropy(n)
        distill += w * distance(n, t)
        cross += w * distance(n, ensemble)
    return objective.alpha * task + objective.beta * distill + objective.gamma * cross


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "objective",
    [
        BlockKD(alpha=0.7, beta=1.3, gamma=0.4),
        BlockKD(alpha=0.7, beta=1.3, gamma=0.4, batched=False),
        BlockKD(stones=(2, 3), temperature=2.0),
        BlockKD(stones=(1,), ensemble_gradient=True),
        BlockKD(ensemble_gradient=True),
    ],
    ids=["batched", "one by one", "fewer stones", "first stone", "ensemble learns"],
)
def test_the_gradient_equals_that_of_the_plain_composition(objective):
    distillation = method(objective)
    images, labels = batch()
    state = jax.tree.map(jnp.array, distillation.init(jax.random.key(0), LIKE))
    student, teacher = state["student"], state["teacher0"]
    gradient = jax.jit(jax.value_and_grad(plain_loss), static_argnums=2)
    expected, gradients = gradient(student["params"], student["batch_stats"], objective, teacher, images, labels)
    before = jax.tree.map(np.array, (student["params"], teacher))
    after, metrics = compile_step(distillation, images, labels)(state, images, labels, jax.random.key(1))
    np.testing.assert_allclose(metrics["student"]["loss"], expected, rtol=1e-5)
    # One step of plain SGD: what parameters moved by is the rate times the gradient.
    moved = jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / 0.1, before[0], after["student"]["params"])
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(moved), jax.tree.leaves(gradients), strict=True):
        scale = max(float(jnp.abs(theirs).max()), 1e-3)
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * scale + 2e-6, err_msg=jax.tree_util.keystr(path))
    # The teacher is unchanged, statistics included.
    jax.tree.map(np.testing.assert_array_equal, after["teacher0"], before[1])


@pytest.mark.exhaustive
def test_teacher_parameters_are_arguments_and_not_constants():
    distillation = method(BlockKD())
    images, labels = jax.ShapeDtypeStruct((6, *SHAPE), jnp.float32), jax.ShapeDtypeStruct((6,), jnp.int32)
    (call,) = plan_step(distillation, images, labels).calls
    text = call.lower().as_text()
    largest = max(x.size for x in jax.tree.leaves(TEACHER.variables))
    constants = [line for line in text.splitlines() if "stablehlo.constant" in line and 'dense<"0x' in line]
    assert largest > 1000
    assert not constants, constants[0][:200]


@pytest.mark.parametrize("chosen", [(4,), (0,), (1, 2, 5)])
def test_stones_out_of_range_are_refused(chosen):
    with pytest.raises(ValueError, match=rf"stones is {re.escape(str(chosen))}: use all, or numbers from 1 to 3"):
        method(BlockKD(stones=chosen)).init(jax.random.key(0), LIKE)


@pytest.mark.parametrize("chosen", ["some", "2,3", ()])
def test_stones_that_are_not_numbers_are_refused(chosen):
    with pytest.raises(ValueError, match=rf"stones is {re.escape(repr(chosen))}: use all, or the numbers"):
        BlockKD(stones=chosen)


PAIRS = [
    ("resnet8", "resnet8x4"),
    ("wrn_16_1", "wrn_16_2"),
    ("vgg8", "vgg11"),
    ("shufflenetv1", "resnet8x4"),
    ("mobilenetv2_half", "vgg8"),
    ("shufflenetv2", "wrn_16_2"),
    ("resnet8", "vgg8"),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("names", PAIRS, ids=lambda names: "-".join(names))
def test_pairs_of_any_resolutions_and_widths(names):
    """Shapes only: nothing is computed."""
    student, teacher = (create(name, classes=10) for name in names)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    variables = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(teacher.init, jax.random.key(0), images)
    )
    distillation = method(BlockKD(), student, Teacher(teacher, variables))
    plan = plan_step(distillation, images, labels)
    (call,), state = plan.calls, plan.state
    parts, _, metrics = call.shapes
    assert {"loss", "accuracy", "task", "distillation", "cross"} < set(metrics[0])
    assert jax.tree.structure(parts[0]) == jax.tree.structure(state["student"])
    exits = jax.eval_shape(distillation.exits, state, images)
    n = min(len(student.stages), len(teacher.stages)) - 1
    assert list(exits) == [f"stone{i}" for i in range(1, n + 1)]
    assert all(x.shape == (2, 10) for x in exits.values())


@pytest.mark.exhaustive
def test_any_distance():
    images, labels = batch()
    losses = {}
    for name in ("kd", "dkd", "mlkd", "dist"):
        distillation = method(BlockKD(distance=name))
        state = distillation.init(jax.random.key(0), LIKE)
        _, metrics = compile_step(distillation, images, labels)(state, images, labels, jax.random.key(1))
        losses[name] = float(metrics["student"]["distillation"])
    assert len(set(losses.values())) == 4 and all(map(np.isfinite, losses.values()))
    with pytest.raises(ValueError, match="unknown logit distance 'kl': use kd, dkd, mlkd, dist,"):
        BlockKD(distance="kl")


@pytest.mark.exhaustive
def test_warm_up():
    """Terms of distances grow epoch by epoch; that of the labels is there from the start."""
    objective = BlockKD(warmup_epochs=4)
    distillation = method(objective)
    images, labels = batch()
    state = distillation.init(jax.random.key(0), LIKE)
    (program,) = distillation.programs()
    function, seen = jax.jit(program.function), []
    assert program.reads == ("images", "labels", "epoch") and method(BlockKD()).programs()[0].reads == program.reads[:2]
    for epoch in (1, 2, 4, 11):
        tensors = (images, labels, jnp.float32(epoch))
        frozen = (state["teacher0"],)
        metrics = function(state["student"], frozen, tensors, jax.random.key(1), jnp.zeros(0))[2]
        others = objective.beta * metrics["distillation"] + objective.gamma * metrics["cross"]
        seen.append(float((metrics["loss"] - objective.alpha * metrics["task"]) / others))
    np.testing.assert_allclose(seen, [0.25, 0.5, 1, 1], rtol=1e-4)
