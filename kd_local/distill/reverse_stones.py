"""Reverse stones: the teacher's first blocks, a connector, and the student's remaining blocks in training mode.

They are an option of this project, not of Block-KD's paper, and a mirror image of its stepping stones:

    M_i = S_head . S_n . ... . S_{i+1} . C'_i . T_i . ... . T_1          1 <= i <= n

A reverse stone trains its connector and the student's blocks after stage i. The more of them it trains, the more it
counts: w'_i = 1 / 2^(i - 1). The student's blocks normalise with statistics of the batch. Each stone has its own
running statistics of them, which start at zero and are not read: the stones do not run in evaluation.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Array, Float

from kd_local.distill.connector import Connector, apply_connectors
from kd_local.distill.objective import EvaluationBatch, Pair, TrainingBatch
from kd_local.distill.stepping_stones import Stone, connector_to
from kd_local.distill.trained_blocks import after_stage, statistics_at_zero
from kd_local.networks import Collection, Variables


def reverse_stones(stones: Sequence[Stone]) -> tuple[Stone, ...]:
    """The reverse stones of the same stages."""
    return tuple(replace(stone, to_student=True, weight=0.5 ** (stone.number - 1)) for stone in stones)


def reverse_connectors(
    batch: EvaluationBatch, stones: Sequence[Stone]
) -> tuple[dict[str, Connector], dict[str, list[Any]]]:
    """The connectors of reverse stones and their inputs, the teacher's features, by the stones' names."""
    reverse = Pair(student=batch.pair.teacher, teacher=batch.pair.student)
    connectors = {stone.name: connector_to(reverse, batch.student, stone.student) for stone in stones}
    return connectors, {stone.name: [batch.teacher.features[stone.teacher]] for stone in stones}


def reverse_statistics(batch: EvaluationBatch, stones: Sequence[Stone]) -> Collection:
    """New running statistics of the student's blocks in each stone; `batch` has shapes in place of outputs."""
    network, features = batch.pair.student, batch.student.features
    return {
        _blocks(stone): statistics_at_zero(after_stage(network, stone.student), features[stone.student])
        for stone in stones
    }


def through_student(
    variables: Variables, batch: TrainingBatch, stones: Sequence[Stone]
) -> tuple[list[Float[Array, "batch classes"]], Collection]:
    """`(logits of the reverse stones, batch statistics of connectors and blocks)`.

    Raises:
        ValueError: the batch does not have the student's remaining blocks.
    """
    if batch.student_remaining_blocks is None:
        raise ValueError(
            "reverse stones need student_remaining_blocks: give the batch a function such as trained_blocks"
        )
    connectors, inputs = reverse_connectors(batch, stones)
    features, statistics = apply_connectors(connectors, variables, inputs, train=True)
    logits: list[Array] = []
    for stone in stones:
        before, x = variables["batch_stats"][_blocks(stone)], features[stone.name]
        of_stone, statistics[_blocks(stone)] = batch.student_remaining_blocks(stone.student, x, before)
        logits.append(of_stone)
    return logits, statistics


def _blocks(stone: Stone) -> str:
    return f"{stone.name}_blocks"
