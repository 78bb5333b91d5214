"""Local distillation: modules isolated from each other, each taught through the teacher's remaining blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.contract import HasTeachers
from kd_local.distill import BlockKD, Distillation, StoneLoss, TaughtContSup, Teacher, TeacherRule
from kd_local.distill.teacher import remaining_blocks
from kd_local.local import ContSup, cut
from kd_local.memory import SummedLosses, footprint, target
from kd_local.models import create, resnet
from kd_local.networks import Network, apply_block, of_block
from kd_local.parallel import compile_step
from tests.support import tiny
from tests.support.taught import locally_taught

STUDENT = resnet(14, classes=5, widths=(4, 4, 6, 8))
SMALL = resnet(8, classes=5, widths=(4, 4, 6, 8))
TEACHER_NETWORK = resnet(8, classes=5, widths=(4, 6, 8, 12))
SHAPE = (8, 8, 3)
LIKE = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
TEACHER = Teacher(TEACHER_NETWORK, tiny.variables(TEACHER_NETWORK, 3))
KEY = jax.random.key(1)


def method(student: Network = STUDENT, **options) -> TaughtContSup:
    return locally_taught(student, TEACHER, SHAPE, optax.sgd(0.1), **options)


def batch() -> tuple[jax.Array, jax.Array]:
    images = np.random.default_rng(1).standard_normal((6, *SHAPE), np.float32)
    return jnp.asarray(images), jnp.arange(6, dtype=jnp.int32) % 5


@pytest.mark.parametrize(
    ("boundaries", "last", "stages"),
    [
        (["stage1/1", "stage2/1"], True, [1, 2, 3]),
        (["stage1/1"], False, [1, None]),
        (["stage2/1"], True, [2, 3]),
        ([], True, [3]),
        (["stem", "stage1/0", "stage2/0", "stage3/0"], True, [0, 1, 2, 3, 3]),  # ends inside stages
        (["stage3/1"], True, [3, None]),  # the last module has no block before its stone
    ],
)
def test_stages_at_which_modules_enter_the_teacher(boundaries, last, stages):
    modules = method(boundaries=boundaries, objective=StoneLoss(last=last)).cut_network.modules
    stones = [module.branch.auxiliary if module.branch else module.auxiliary for module in modules]
    assert [stone and stone.head.stage for stone in stones] == stages
    shapes = {0: (8, 8, 4), 1: (8, 8, 6), 2: (4, 4, 8), 3: (2, 2, 12)}
    assert all(stone.head.shape == shapes[stone.head.stage] for stone in stones if stone)


@pytest.mark.parametrize(
    ("student", "teacher", "stages"),
    [
        ("resnet8", "resnet50", [1, 2, 3]),  # the teacher has four stages: the stem is paired with the first
        ("resnet18", "resnet8", [0, 0, 1, 2]),  # the first stage has no partner
        ("vgg8", "wrn_16_1", [0, 0, 1, 2]),
    ],
)
def test_stages_of_other_numbers_are_paired_from_the_last(student, teacher, stages):
    network, of_teacher = create(student, classes=5), create(teacher, classes=5)
    rule = TeacherRule(Teacher(of_teacher, {}), (32, 32, 3))
    ends = [network.position(name) + 1 for name in network.stages[:-1]]
    assert [rule.stage_of(network, end) for end in ends] == stages


@pytest.mark.exhaustive
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
    for number, module in enumerate(local.cut_network.modules):
        part = before[module.name]
        head = (module.branch.auxiliary if module.branch else module.auxiliary).head
        last_block = str(module.branch.end - 1 if module.branch else len(module.blocks) - 1)

        def objective(params, module=module, part=part, x=x, head=head, last_block=last_block, number=number):
            blocks, own = (of_block({**part, "params": params}, name) for name in ("blocks", "head"))
            features, _ = module.blocks.features(blocks, x, train=True)
            stage = features[last_block]
            entered, _ = apply_block(head, own, stage, train=True)  # without the teacher: the connector
            total = loss(remaining_blocks(TEACHER_NETWORK, before["teacher"], number + 1, entered))
            return total + loss(features[module.blocks.names[-1]]) if module.branch else total, stage

        (expected, x), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(part["params"])
        np.testing.assert_allclose(metrics[module.name]["loss"], expected, rtol=1e-5)
        moved = jax.tree.map(lambda a, b: (a - np.asarray(b)) / 0.1, part["params"], after[module.name]["params"])
        for (path, ours), theirs in zip(jax.tree.leaves_with_path(moved), jax.tree.leaves(gradients), strict=True):
            scale = max(float(jnp.abs(theirs).max()), 1e-3)
            np.testing.assert_allclose(ours, theirs, atol=3e-4 * scale + 3e-6, err_msg=jax.tree_util.keystr(path))
    jax.tree.map(np.testing.assert_array_equal, after["teacher"], before["teacher"])


@pytest.mark.exhaustive
def test_the_reference_form_has_the_losses_of_the_programs():
    local = method(SMALL, context="R1")
    state = local.init(jax.random.key(0), LIKE)
    images, labels = batch()
    losses = jax.jit(local.cut_network.losses)(state, images, labels).losses
    expected = {name: float(loss) for name, loss in losses.items()}
    _, metrics = compile_step(local, images, labels)(state, jnp.array(images), jnp.array(labels), KEY)
    assert {name: float(metrics[name]["loss"]) for name in expected} == pytest.approx(expected, rel=1e-5)


def test_logits_equal_those_of_the_whole_student():
    local = method(SMALL)
    state = local.init(jax.random.key(0), LIKE)
    images, _ = batch()
    variables = local.network_variables(state)
    expected = jax.eval_shape(SMALL.init, jax.random.key(0), LIKE)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    logits, _ = jax.jit(partial(SMALL.apply, train=False))(variables, images)
    np.testing.assert_allclose(jax.jit(local.logits)(state, images), logits, rtol=1e-6)
    assert list(jax.eval_shape(local.exits, state, images)) == ["ensemble", "module00", "module01", "module02"]
    deployed = local.deployed(state)
    assert {name: list(part) for name, part in deployed.items()} == {f"module0{i}": ["blocks"] for i in range(3)}


def test_only_a_network_without_contexts_is_usable_alone():
    for local in (
        method(SMALL, context="E"),
        ContSup(cut(SMALL, 2, classes=5, context="R0"), optax.sgd(0.1), "module00"),
    ):
        assert local.network_variables(jax.eval_shape(local.init, KEY, LIKE)) is None
    plain = ContSup(cut(SMALL, 2, classes=5, context="R0"), optax.sgd(0.1))
    assert plain.network_variables(jax.eval_shape(plain.init, KEY, LIKE)) is not None


def test_only_a_method_with_a_teacher_has_teachers():
    assert isinstance(method(), HasTeachers)
    assert not isinstance(ContSup(cut(SMALL, 2, classes=5), optax.sgd(0.1)), HasTeachers)


def test_the_sum_of_all_losses_keeps_the_structure_of_the_state():
    naive = SummedLosses(method(SMALL).cut_network, optax.sgd(0.1))
    (program,) = naive.programs()
    part = jax.eval_shape(naive.init, KEY, LIKE)[program.name]
    after, _, _ = jax.eval_shape(program.function, part, (), batch(), KEY, jnp.zeros(0))
    assert jax.tree.structure(after) == jax.tree.structure(part)


@pytest.mark.exhaustive
def test_a_step_needs_less_memory_than_all_stones_at_once():
    """Of a student and teacher large enough to matter; the teacher counts in both."""
    student, teacher = create("resnet20", classes=10), create("resnet20", classes=10)
    shape = (16, 16, 3)
    like = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    known = Teacher(teacher, jax.tree.map(np.zeros_like, teacher.init(jax.random.key(0), like)))
    optimizer = optax.sgd(0.1)
    local = locally_taught(student, known, shape, optimizer)
    whole = Distillation(student, (known,), BlockKD(), optimizer)
    peaks = [footprint(one, shape, 64, target("local")).peak_bytes for one in (local, whole)]
    assert peaks[0] < 0.8 * peaks[1]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="alpha is -1.0"):
        StoneLoss(alpha=-1.0)
    with pytest.raises(ValueError, match=r"images of shape \(16, 16, 3\): this method was made for \(8, 8, 3\)"):
        method().init(jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
