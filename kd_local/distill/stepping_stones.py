"""Stepping stones: the student's first blocks, a connector, and the frozen teacher's remaining blocks.

Reference: Yu et al., "Decoupling dark knowledge via block-wise logit distillation for feature-level alignment" (arXiv
2411.01547).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.connector import Connector
from kd_local.distill.objective import Outputs, Pair, RemainingBlocks
from kd_local.distill.stages import pair_stages, rectified


@dataclass(frozen=True)
class Stone:
    """Where a stepping stone leaves the student and enters the teacher.

    Attributes:
        number: i of N_i, from 1 to n.
        student: index of the student's stage.
        teacher: index of the teacher's.
        weight: w_i = 1 / 2^(n - i).
    """

    number: int
    student: int
    teacher: int
    weight: float

    @property
    def name(self) -> str:
        """Such as `stone1`."""
        return f"stone{self.number}"


def stepping_stones(student: Outputs, teacher: Outputs, chosen: str) -> tuple[Stone, ...]:
    """The stones of a student and a teacher, in order: `all`, or those of these numbers (`2,3`).

    Raises:
        ValueError: a number that is none.
    """
    pairs = pair_stages(student, teacher)
    stones = {
        number: Stone(number, *indices, weight=0.5 ** (len(pairs) - number))
        for number, indices in enumerate(pairs, start=1)
    }
    if chosen == "all":
        return tuple(stones.values())
    try:
        numbers = sorted({int(number) for number in chosen.split(",")})
        return tuple(stones[number] for number in numbers)
    except (ValueError, KeyError):
        raise ValueError(
            f"stones is {chosen!r}: use all, or numbers from 1 to {len(pairs)} with commas between"
        ) from None


def connector_to(pair: Pair, teacher: Outputs, stage: int) -> Connector:
    """From a student's features to what the teacher's block behind that stage expects: its shape, and its ReLU where
    the block before ends in one (pre-activation networks do not)."""
    return Connector(teacher.features[stage].shape[1:], relu=rectified(pair.teacher, stage))


def through_teacher(
    remaining_blocks: RemainingBlocks, entering: Sequence[tuple[int, Array]], *, batched: bool
) -> list[Float[Array, "batch classes"]]:
    """The teacher's logits of features that enter it behind these stages, in order of the stages.

    Batched, those that have entered go through the following blocks together, as one larger batch: the teacher's
    statistics stand still, so that no image sees another. Images stay beside their own, so that nothing moves between
    devices among which the batch is divided.
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
