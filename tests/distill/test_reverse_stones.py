"""Block-KD in both directions, against compositions of slices of the two networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import BlockKD, Distillation, Pair, Teacher, TrainingBatch, outputs
from kd_local.distill.reverse_stones import reverse_connectors, reverse_stones
from kd_local.distill.stepping_stones import stepping_stones
from kd_local.distill.teacher import remaining_blocks
from kd_local.distill.trained_blocks import trained_blocks
from kd_local.models import resnet
from kd_local.networks import apply_block, of_block
from tests.support import tiny

STUDENT = resnet(8, classes=5, widths=(4, 4, 6, 8))
TEACHER = resnet(8, classes=5, widths=(4, 5, 7, 9))
IMAGES = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
VARIABLES = tiny.variables(TEACHER, 3)
LABELS = jnp.arange(4, dtype=jnp.int32)


def prepared(objective):
    """`(variables of the student, of the objective, batch of the student's parameters)`."""
    state = Distillation(STUDENT, (Teacher(TEACHER, VARIABLES),), objective, optax.sgd(0.1)).init(
        jax.random.key(0), IMAGES
    )
    own, of_objective = of_block(state["student"], "student"), of_block(state["student"], "teacher0")

    def batch(params):
        return TrainingBatch(
            pair=Pair(STUDENT, TEACHER),
            student=outputs(STUDENT, {**own, "params": params}, IMAGES, train=True)[0],
            teacher=outputs(TEACHER, VARIABLES, IMAGES, train=False)[0],
            remaining_blocks=partial(remaining_blocks, TEACHER, VARIABLES),
            labels=LABELS,
            indices=jnp.zeros(4, jnp.int32),
            epoch=jnp.ones(()),
            rng=jax.random.key(1),
            student_remaining_blocks=partial(trained_blocks, STUDENT, params),
        )

    return own, of_objective, batch


@pytest.mark.long
def test_both_directions_by_hand():
    objective = BlockKD(alpha=0.7, beta=0.5, gamma=0.2, stones=(1, 3), directions="both")
    own, of_objective, make = prepared(objective)
    batch = make(own["params"])
    of_paper = stepping_stones(batch.student, batch.teacher, objective.stones)
    stones = reverse_stones(of_paper)
    assert [(stone.name, stone.weight) for stone in stones] == [("reverse_stone1", 1.0), ("reverse_stone3", 0.25)]
    connectors, _ = reverse_connectors(batch, stones)
    reverse = []
    for stone in stones:
        first = TEACHER[: stone.number + 1]
        x = first.apply(first.select(VARIABLES), IMAGES, train=False)[0]
        x, _ = apply_block(connectors[stone.name], of_block(of_objective, stone.name), x, train=True)
        blocks = STUDENT[stone.number + 1 :]
        reverse.append(blocks.apply(blocks.select(own), x, train=True)[0])
    found = objective.loss(of_objective, batch)
    paper, _ = objective._stone_logits(of_objective, batch, train=True)[1:]
    every = [*zip(of_paper, paper, strict=True), *zip(stones, reverse, strict=True)]
    ensemble = sum(x for _, x in every) / 4
    distance = objective._distance()
    task = batch.task_loss(batch.student.logits, LABELS)["loss"] + sum(
        stone.weight * batch.task_loss(x, LABELS)["loss"] for stone, x in every
    )
    distill, cross = (
        distance(batch.student.logits, target, LABELS)
        + sum(stone.weight * distance(x, target, LABELS) for stone, x in every)
        for target in (batch.teacher.logits, ensemble)
    )
    np.testing.assert_allclose(found.task, 0.7 * task, rtol=1e-5)
    np.testing.assert_allclose(found.distillation, 0.5 * distill + 0.2 * cross, rtol=1e-4)
    assert jax.tree.structure(found.batch_stats) == jax.tree.structure(of_objective["batch_stats"])
    mean = found.batch_stats["reverse_stone1_blocks"]["stage2/0"]["conv1"]["norm"]["mean"]
    assert (mean != 0).any()


@pytest.mark.long
@pytest.mark.parametrize(("number", "names"), [(1, ["head", "stage2/0", "stage3/0"]), (3, ["head"])])
def test_a_reverse_stone_trains_the_students_later_blocks(number, names):
    objective = BlockKD(stones=(number,), directions="both")
    own, of_objective, make = prepared(objective)

    def of_stone(params):
        batch = make(params)
        (stone,) = reverse_stones(stepping_stones(batch.student, batch.teacher, objective.stones))
        connectors, inputs = reverse_connectors(batch, [stone])
        own = of_block(of_objective, stone.name)
        x, _ = apply_block(connectors[stone.name], own, *inputs[stone.name], train=True)
        statistics = of_objective["batch_stats"][f"{stone.name}_blocks"]
        return batch.student_remaining_blocks(stone.student, x, statistics)[0][:, 0].sum()

    found = jax.grad(of_stone)(own["params"])
    assert sorted(name for name, leaves in found.items() if any(map(np.any, jax.tree.leaves(leaves)))) == names


def test_the_paper_has_one_direction():
    _, of_objective, _ = prepared(BlockKD())
    assert set(of_objective["params"]) == set(of_objective["batch_stats"]) == {"stone1", "stone2", "stone3"}
