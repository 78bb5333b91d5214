"""Objectives that compare the logits of student and teacher."""

from typing import Any, ClassVar, Literal

from jaxtyping import Array, Float, Int

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.objective import Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.sample_weights import entropy_weights
from kd_local.distill.warmup import warmup
from kd_local.networks import Variables


class LogitObjective(Objective):
    """ce_weight * cross entropy + min(epoch / warmup_epochs, 1) * weight * distance.

    A subclass is a frozen dataclass that defines `distance`. It has those of the attributes below as hyper-parameters
    that it needs; the others have the values here. It is an objective and, by the same name, a distance of Block-KD and
    of local distillation.

    Attributes:
        tempered: True if T of Block-KD and of local distillation is the `temperature` of this distance; False if the
            distance has no temperature, or is used with its own only.
        ce_weight: weight of the cross entropy of the labels.
        weight: weight of the distance.
        warmup_epochs: epochs over which the weight of the distance grows linearly; 0 for no warm-up.
        entropy_weight: H_ub of the weights of the samples, see `entropy_weights`; `none` for no weights.
    """

    reads: ClassVar[Literal["logits", "features"]] = "logits"
    tempered: ClassVar[bool] = True
    ce_weight: float = 1.0
    weight: float = 1.0
    warmup_epochs: int = 0
    entropy_weight: str = "none"

    @property
    def needs_epoch(self) -> bool:
        return self.warmup_epochs > 0

    @classmethod
    def as_distance(
        cls, *, temperature: float | None = None, standardise: bool = False, entropy_weight: str = "none"
    ) -> "LogitObjective":
        """The objective whose `weighted_distance` has these hyper-parameters, and defaults for all others."""
        numbers: dict[str, Any] = {"standardise": standardise, "entropy_weight": entropy_weight}
        return cls(**numbers if temperature is None else {**numbers, "temperature": temperature})

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
