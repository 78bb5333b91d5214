"""What a way of teaching is: an objective of what a student and its teacher make of the same batch.

The method `Distillation` runs both networks and takes the gradient; an objective says what is minimised. A new one is a
file of its own and a line in `registry.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import Metrics
from kd_local.networks import Collection, Network, Variables


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
    """What a network makes of a batch, or the shapes of it.

    Attributes:
        features: at the end of each stage, the first block's (the stem's) first.
        preactivations: the same before the ReLU that ends a block; the features themselves where none does.
        pooled: what the last linear layer reads.
        logits: before the softmax.
    """

    features: tuple[Float[Array, "batch _ _ _"] | jax.ShapeDtypeStruct, ...]
    preactivations: tuple[Float[Array, "batch _ _ _"] | jax.ShapeDtypeStruct, ...]
    pooled: Float[Array, "batch _"] | jax.ShapeDtypeStruct
    logits: Float[Array, "batch _"] | jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Pair:
    """Who learns from whom."""

    student: Network
    teacher: Network


@dataclass(frozen=True)
class Lesson:
    """All that an objective is given of one batch.

    Attributes:
        teacher: cut from the gradient, in evaluation mode.
        indices: the images' places in the training set, from 0.
        epoch: the current one, counted from 1.
        teacher_rest: sends features through the teacher's blocks behind the stage of that index and gives logits;
            gradients pass through it to the features.
        train: whether the student is in training mode.
    """

    pair: Pair
    student: Outputs
    teacher: Outputs
    labels: Int[Array, " batch"]
    indices: Int[Array, " batch"]
    epoch: Float[Array, ""]
    rng: PRNGKeyArray
    teacher_rest: Callable[[int, Float[Array, "batch _ _ _"]], Float[Array, "batch _"]]
    train: bool


class Objective:
    """A frozen dataclass of hyper-parameters, by default as published, that says what is minimised.

    Attributes:
        reads: `logits` where of the teacher nothing else is used: then these may come from a cache.
    """

    reads: ClassVar[Literal["logits", "features"]] = "features"

    def init(
        self, rng: PRNGKeyArray, pair: Pair, student: Outputs, teacher: Outputs, *, examples: int
    ) -> Variables:
        """Fresh variables of what learns beside the student (connectors), or is remembered from step to step
        (`batch_stats`); of the outputs only shapes count. `examples` is the size of the training set.

        Raises:
            ValueError: the two networks do not go together.
        """
        return {"params": {}, "batch_stats": {}}

    def loss(
        self, variables: Mapping[str, Any], lesson: Lesson
    ) -> tuple[Float[Array, ""], Metrics, Collection]:
        """What is minimised, the cross entropy of the labels included; its parts by name; and `batch_stats` of the
        variables after the step."""
        raise NotImplementedError

    def logits(self, variables: Mapping[str, Any], lesson: Lesson) -> Float[Array, "batch _"]:
        """What is deployed: the student's own logits, unless the objective says otherwise."""
        return lesson.student.logits

    def exits(self, variables: Mapping[str, Any], lesson: Lesson) -> dict[str, Float[Array, "batch _"]]:
        """The logits of whatever else answers, by name: stepping stones."""
        return {}
