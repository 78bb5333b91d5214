"""Objectives that compare the logits of student and teacher."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.sample_weights import entropy_weights
from kd_local.distill.warmup import warmup
from kd_local.networks import Variables

Distance = Callable[
    [Float[Array, "batch classes"], Float[Array, "batch classes"], Int[Array, " batch"]], Float[Array, ""]
]
"""`(student's logits, target logits, labels) -> mean over the batch`."""


def check_distance(distance: Distance, student: Any, target: Any) -> None:
    """Checks that a distance can compare logits of these shapes, without a computation.

    Raises:
        ValueError: it cannot; for example, there are too few classes.
    """
    jax.eval_shape(distance, student, target, jax.ShapeDtypeStruct(student.shape[:1], jnp.int32))


class LogitObjective(Objective):
    """ce_weight * cross entropy + min(epoch / warmup_epochs, 1) * weight * distance.

    A subclass is a frozen dataclass that defines `distance`. It has those of the attributes below as hyper-parameters
    that it needs; the others have the values here. It is an objective and, by the same name, a distance of Block-KD and
    of local distillation.

    Attributes:
        tempered: True if Block-KD and local distillation choose the hyper-parameter `temperature` of this distance;
            False if the distance has none, or keeps its own.
        ce_weight: weight of the cross entropy of the labels.
        weight: weight of the distance.
        warmup_epochs: epochs over which the weight of the distance grows linearly; 0 for no warm-up.
        entropy_weight: H_ub of the weights of the samples, see `entropy_weights`; `none` for no weights.
    """

    reads: ClassVar[Literal["logits", "features"]] = "logits"
    tempered: ClassVar[bool] = False
    ce_weight: float = 1.0
    weight: float = 1.0
    warmup_epochs: int = 0
    entropy_weight: str = "none"

    @property
    def needs_epoch(self) -> bool:
        return self.warmup_epochs > 0

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        check_distance(self.weighted_distance, batch.student.logits, batch.teacher.logits)
        return super().init(rng, batch, examples=examples)

    @classmethod
    def as_distance(
        cls, *, temperature: float | None = None, standardise: bool = False, entropy_weight: str = "none"
    ) -> "LogitObjective":
        """The objective whose `weighted_distance` has these hyper-parameters, and defaults for all others.

        Raises:
            ValueError: a hyper-parameter that the class does not have, or a value out of range.
        """
        usual = {"temperature": None, "standardise": False, "entropy_weight": "none"}
        values = (temperature, standardise, entropy_weight)
        given: dict[str, Any] = dict(zip(usual, values, strict=True))
        given = {name: value for name, value in given.items() if value != usual[name]}
        for name, value in given.items():
            if name not in cls.__dataclass_fields__:  # type: ignore[attr-defined]
                raise ValueError(f"{name} is {value}, but {cls.__name__} has no {name}: leave it out")
        return cls(**given)

    def distance(
        self,
        student: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        sample_weights: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """The mean over the batch of the losses of the samples, each times its weight if there are weights."""
        raise NotImplementedError

    def weighted_distance(
        self,
        student: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
    ) -> Float[Array, ""]:
        """`distance` with the weights of `entropy_weights`."""
        return self.distance(student, target, labels, entropy_weights(student, target, self.entropy_weight))

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        return self.with_ramp(batch, self.weighted_distance(batch.student.logits, batch.teacher.logits, batch.labels))

    def with_ramp(self, batch: TrainingBatch, distance: Float[Array, ""]) -> ObjectiveLoss:
        """The loss, given the distance of this batch without its weight."""
        weight: float | Array = self.weight
        if self.warmup_epochs:
            weight = warmup(batch.epoch, self.warmup_epochs) * self.weight
        return with_labels(batch, distance, ce_weight=self.ce_weight, weight=weight)
