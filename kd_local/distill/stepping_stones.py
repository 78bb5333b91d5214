"""Stepping stones: the student's first blocks, a connector, and the frozen teacher's remaining blocks.

Reference: Yu et al., "Decoupling dark knowledge via block-wise logit distillation for feature-level alignment" (arXiv
2411.01547).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.choices.distillation import Stones
from kd_local.distill.connector import Connector
from kd_local.distill.objective import Outputs, Pair, RemainingBlocks
from kd_local.distill.stages import pair_stages, rectified


@dataclass(frozen=True)
class Stone:
    """A stepping stone: the student's stages up to one stage, then the teacher's after one stage.

    In a reverse stone (`kd_local.distill.reverse_stones`) the teacher's stages come first.

    Attributes:
        number: the i of N_i, from 1 to n.
        student: index of the student's last stage.
        teacher: index of the teacher's stage that is replaced; its later blocks follow.
        weight: w_i = 1 / 2^(n - i).
        to_student: True for a reverse stone.
    """

    number: int
    student: int
    teacher: int
    weight: float
    to_student: bool = False

    @property
    def name(self) -> str:
        """The name, such as `stone1` or `reverse_stone1`."""
        return f"{'reverse_' if self.to_student else ''}stone{self.number}"


def stepping_stones(student: Outputs, teacher: Outputs, chosen: Stones) -> tuple[Stone, ...]:
    """The chosen stones of a student and a teacher, in order.

    Raises:
        ValueError: no stone has a chosen number.
    """
    pairs = pair_stages(student, teacher)
    stones = {
        number: Stone(number, *indices, weight=0.5 ** (len(pairs) - number))
        for number, indices in enumerate(pairs, start=1)
    }
    if chosen == "all":
        return tuple(stones.values())
    if not stones.keys() >= set(chosen):
        raise ValueError(f"stones is {chosen}: use all, or numbers from 1 to {len(pairs)}")
    return tuple(stone for number, stone in stones.items() if number in chosen)


def connector_to(pair: Pair, teacher: Outputs, stage: int) -> Connector:
    """The connector that maps a student's features to the teacher's features after a stage.

    Its output has their shape, and it ends in a ReLU if the teacher's stage does.
    """
    return Connector(
        teacher.features[stage].shape[1:],
        relu=rectified(pair.teacher, stage),
        class_tokens=(pair.student.class_tokens, pair.teacher.class_tokens),
    )


def through_teacher(
    remaining_blocks: RemainingBlocks, entering: Sequence[tuple[int, Array]], *, batched: bool
) -> list[Float[Array, "batch classes"]]:
    """The teacher's logits for features that enter it after several stages, in the order of these stages.

    Args:
        remaining_blocks: applies the teacher's blocks after a stage.
        entering: `(stage, features)`: the features that enter the teacher after this stage.
        batched: if True, all features that have entered go through the next blocks together, as one larger batch. The
            teacher's statistics are fixed, so images do not affect each other. The features of one image stay adjacent,
            so that nothing moves between the devices over which the batch is divided.
    """
    if not batched or len(entering) == 1:
        return [remaining_blocks(stage, x) for stage, x in entering]
    (_, first), count = entering[0], len(entering)
    together = first[:, None]
    for (stage, _), (following, x) in pairwise(entering):
        moved = together if stage == following else _unfold(remaining_blocks(stage, _fold(together), following), first)
        together = jnp.concatenate([moved, x[:, None].astype(moved.dtype)], axis=1)
    logits = _unfold(remaining_blocks(entering[-1][0], _fold(together)), first)
    return [logits[:, i] for i in range(count)]


def _fold(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _unfold(x: Array, like: Array) -> Array:
    return x.reshape(like.shape[0], -1, *x.shape[1:])
