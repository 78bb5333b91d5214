"""Stepping stones: their stages and weights, and teacher's blocks that several stones share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill import Pair, Teacher, output_shapes
from kd_local.distill.stepping_stones import connector_to, stepping_stones, through_teacher
from kd_local.distill.teacher import remaining_blocks
from kd_local.models import create, resnet
from tests.support import tiny

STUDENT = resnet(8, classes=5, widths=(4, 4, 6, 8))
TEACHER_NETWORK = resnet(14, classes=5, widths=(4, 6, 8, 12))
LIKE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
TEACHER = Teacher(TEACHER_NETWORK, tiny.variables(TEACHER_NETWORK, 3))


def entering(*stages: int) -> list[tuple[int, jax.Array]]:
    random, shapes = np.random.default_rng(0), output_shapes(TEACHER_NETWORK, LIKE)
    return [
        (stage, jnp.asarray(random.standard_normal((4, *shapes.features[stage].shape[1:])), jnp.float32))
        for stage in stages
    ]


def through(remaining, entering: list[tuple[int, jax.Array]], batched: bool) -> list[jax.Array]:
    """The teacher's logits, compiled."""
    stages, features = zip(*entering, strict=True)
    compiled = jax.jit(lambda *x: through_teacher(remaining, list(zip(stages, x, strict=True)), batched=batched))
    return compiled(*features)


@pytest.mark.usually("stages2")
@pytest.mark.parametrize("stages", [(1, 2, 3), (1, 3), (2, 2, 3), (2,)])
def test_batched_stones_equal_stones_one_by_one(stages):
    remaining = partial(remaining_blocks, TEACHER_NETWORK, TEACHER.variables)
    together, alone = (through(remaining, entering(*stages), batched) for batched in (True, False))
    assert len(together) == len(alone) == len(stages)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert not np.allclose(a[0], a[1], atol=1e-2)


def test_batched_images_do_not_affect_each_other():
    remaining = partial(remaining_blocks, TEACHER_NETWORK, TEACHER.variables)
    together = through(remaining, entering(1, 3), batched=True)
    changed = [(stage, x.at[0].add(1.0)) for stage, x in entering(1, 3)]
    after = through(remaining, changed, batched=True)
    for a, b in zip(together, after, strict=True):
        assert bool((a[0] != b[0]).any())
        np.testing.assert_allclose(a[1:], b[1:], rtol=1e-6)


def test_weights_and_choice_of_stones():
    student, teacher = output_shapes(STUDENT, LIKE), output_shapes(TEACHER_NETWORK, LIKE)
    stones = stepping_stones(student, teacher, "all")
    assert [(stone.name, stone.student, stone.teacher, stone.weight) for stone in stones] == [
        ("stone1", 1, 1, 0.25),
        ("stone2", 2, 2, 0.5),
        ("stone3", 3, 3, 1.0),
    ]
    assert stepping_stones(student, teacher, (3, 1)) == (stones[0], stones[2])


def test_connectors_end_as_the_teachers_blocks_do():
    rectified, pre_activation = create("resnet8x4", classes=10), create("wrn_16_2", classes=10)
    for teacher, relu in ((rectified, True), (pre_activation, False)):
        connector = connector_to(Pair(STUDENT, teacher), output_shapes(teacher, LIKE), 2)
        assert connector.relu is relu
