"""Local distillation: modules isolated from each other, each taught through the teacher's remaining blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import LocalDistillation, StoneLoss, Teacher
from kd_local.distill.teacher import remaining_blocks
from kd_local.memory import footprint, target
from kd_local.models import create, resnet
from kd_local.networks import Network, apply_block, of_block
from kd_local.parallel import compile_step
from tests.support import tiny

STUDENT = resnet(14, classes=5, widths=(4, 4, 6, 8))
SMALL = resnet(8, classes=5, widths=(4, 4, 6, 8))
TEACHER_NETWORK = resnet(8, classes=5, widths=(4, 6, 8, 12))
SHAPE = (8, 8, 3)
LIKE = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
TEACHER = Teacher(TEACHER_NETWORK, tiny.variables(TEACHER_NETWORK, 3))
KEY = jax.random.key(1)


def method(student: Network = STUDENT, **options) -> LocalDistillation:
    return LocalDistillation(student, TEACHER, StoneLoss(**options), optax.sgd(0.1), SHAPE)


def batch() -> tuple[jax.Array, jax.Array]:
    images = np.random.default_rng(1).standard_normal((6, *SHAPE), np.float32)
    return jnp.asarray(images), jnp.arange(6, dtype=jnp.int32) % 5


@pytest.mark.parametrize(
    ("stones", "cuts", "stone_of"),
    [
        ("all", ["stem stage1/0 stage1/1", "stage2/0 stage2/1", "stage3/0 stage3/1 head"], [1, 2, 3]),
        ((1,), ["stem stage1/0 stage1/1", "stage2/0 stage2/1 stage3/0 stage3/1 head"], [1, None]),
        ((2, 3), ["stem stage1/0 stage1/1 stage2/0 stage2/1", "stage3/0 stage3/1 head"], [2, 3]),
        ((3,), [" ".join(STUDENT.names)], [3]),
    ],
)
def test_boundaries_of_the_student(stones, cuts, stone_of):
    local = method(stones=stones)
    modules = local.modules
    assert modules is local.modules  # computed once
    assert [" ".join(module.blocks.names) for module in modules] == cuts
    assert [module.stone and module.stone.number for module in modules] == stone_of
    assert [module.last for module in modules] == [False] * (len(cuts) - 1) + [True]


def test_each_module_learns_only_from_its_own_loss():
    """Whole networks, one module after the other: what each loss moves, and nothing else."""
    local = method(SMALL)
    state = local.init(jax.random.key(0), LIKE)
    images, labels = batch()
    before = jax.tree.map(np.array, state)
    step = compile_step(local, images, labels)
    after, metrics = step(state, jnp.array(images), jnp.array(labels), KEY)
    target_logits = jax.jit(partial(TEACHER_NETWORK.apply, train=False))(before["teacher"], images)[0]

    def loss(logits):
        p, q = jax.nn.softmax(target_logits / 4), jax.nn.softmax(logits / 4)
        divergence = 16 * (p * (jnp.log(p) - jnp.log(q))).sum(axis=1).mean()
        return 0.1 * -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean() + 0.9 * divergence

    x = images
    for module in local.modules:
        part = before[module.name]

        def objective(params, module=module, part=part, x=x):
            blocks, connector = (of_block({**part, "params": params}, name) for name in ("blocks", "connector"))
            features, _ = module.blocks.features(blocks, x, train=True)
            stage = features[module.blocks.names[module.end - 1]]
            entered, _ = apply_block(module.connector, connector, stage, train=True)
            total = loss(remaining_blocks(TEACHER_NETWORK, before["teacher"], module.stone.teacher, entered))
            return total + loss(features["head"]) if module.last else total, stage

        (expected, x), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(part["params"])
        np.testing.assert_allclose(metrics[module.name]["loss"], expected, rtol=1e-5)
        moved = jax.tree.map(lambda a, b: (a - np.asarray(b)) / 0.1, part["params"], after[module.name]["params"])
        for (path, ours), theirs in zip(jax.tree.leaves_with_path(moved), jax.tree.leaves(gradients), strict=True):
            scale = max(float(jnp.abs(theirs).max()), 1e-3)
            np.testing.assert_allclose(ours, theirs, atol=3e-4 * scale + 3e-6, err_msg=jax.tree_util.keystr(path))
    jax.tree.map(np.testing.assert_array_equal, after["teacher"], before["teacher"])


def test_logits_equal_those_of_the_whole_student():
    local = method(SMALL)
    state = local.init(jax.random.key(0), LIKE)
    images, _ = batch()
    variables = local.network_variables(state)
    expected = jax.eval_shape(SMALL.init, jax.random.key(0), LIKE)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    logits, _ = jax.jit(partial(SMALL.apply, train=False))(variables, images)
    np.testing.assert_allclose(jax.jit(local.logits)(state, images), logits, rtol=1e-6)
    assert list(jax.eval_shape(local.exits, state, images)) == ["stone1", "stone2", "stone3"]


@pytest.mark.exhaustive
def test_a_step_needs_less_memory_than_all_stones_at_once():
    """Of a student and teacher large enough to matter; the teacher counts in both."""
    from kd_local.distill import BlockKD, Distillation

    student, teacher = create("resnet20", classes=10), create("resnet20", classes=10)
    shape = (16, 16, 3)
    like = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    known = Teacher(teacher, jax.tree.map(np.zeros_like, teacher.init(jax.random.key(0), like)))
    optimizer = optax.sgd(0.1)
    local = LocalDistillation(student, known, StoneLoss(), optimizer, shape)
    whole = Distillation(student, (known,), BlockKD(), optimizer)
    peaks = [footprint(one, shape, 64, target("local")).peak_bytes for one in (local, whole)]
    assert peaks[0] < 0.8 * peaks[1]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"stones is \(5,\): use all, or numbers from 1 to 3"):
        method(stones=(5,))
    with pytest.raises(ValueError, match="alpha is -1.0"):
        StoneLoss(alpha=-1.0)
    with pytest.raises(ValueError, match=r"images of shape \(16, 16, 3\): this method was made for \(8, 8, 3\)"):
        method().init(jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
