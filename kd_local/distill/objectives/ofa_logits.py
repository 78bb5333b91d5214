"""OFA-KD's loss on logits as an objective of its own, without exits."""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Array, Float, Int

from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.objectives.ofa import EPS, ofa_loss
from kd_local.distill.sample_weights import EntropyWeight
from kd_local.ranges import Flag, Weight, Weighted

_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class OFALogits(LogitObjective):
    """ce_weight * cross entropy + weight * `ofa_loss` of the student's logits, without the exits of OFA-KD.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `ofa_loss`, 0 or larger.
        eps: exponent of the teacher's probabilities, above 0; published: 1, and 1.5 for DeiT-Ti to ResNet-18.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Hao et al. (NeurIPS 2023). The defaults are those of its code.

    Raises:
        ValueError: a negative weight, or an eps that is not above 0.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 1.0
    eps: Annotated[float, EPS, _TERM] = 1.0
    standardise: Annotated[Flag, _TERM] = False
    entropy_weight: Annotated[EntropyWeight, _TERM] = "none"

    def distance(
        self,
        student: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        sample_weights: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        return ofa_loss(
            student, target, labels, eps=self.eps, standardised=self.standardise, sample_weights=sample_weights
        )
