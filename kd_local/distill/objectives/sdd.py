"""Scale-decoupled distillation: distances of the logits of regions of the last feature map."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.objective import EvaluationBatch, ObjectiveLoss, TrainingBatch
from kd_local.distill.objectives.dkd import DKD
from kd_local.distill.objectives.kd import KD
from kd_local.distill.objectives.nkd import NKD
from kd_local.distill.regions import SCALES, by_region, check_regions, check_scales, region_logits
from kd_local.distill.sample_weights import entropy_weights
from kd_local.networks import Variables
from kd_local.ranges import Flag, Weighted


class OfRegions(LogitObjective):
    """An objective of logits whose distance is that of regions: `class SDKD(OfRegions, KD)`.

    The last feature map of each network is averaged over regions, and the network's own last linear layer turns each
    mean into logits, see `kd_local.distill.regions`. Weights of samples by entropy are those of each region's logits.

    Attributes:
        scales: numbers of regions along each side of the map.

    Reference: Wei et al., "Scale decoupled distillation" (CVPR 2024).
    """

    reads: ClassVar[Literal["logits", "features"]] = "features"
    scales: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scales(self.scales)

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        check_regions(batch.student, type(self).__name__, "student")
        check_regions(batch.teacher, type(self).__name__, "teacher")
        return super().init(rng, batch, examples=examples)

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        pair, params = batch.pair, {"params": batch.student_params}
        student = region_logits(pair.student, params, batch.student, self.scales)
        target = region_logits(pair.teacher, batch.teacher_variables, batch.teacher, self.scales)
        return self.with_ramp(batch, by_region(self._of_each_region, student, target, batch.labels))

    def _of_each_region(
        self,
        student: Float[Array, "n classes"],
        target: Float[Array, "n classes"],
        labels: Int[Array, " n"],
        weights: Float[Array, " n"] | None,
    ) -> Float[Array, ""]:
        of_entropy = entropy_weights(student, target, self.entropy_weight)
        if of_entropy is not None and weights is not None:
            weights = weights.astype(of_entropy.dtype) * of_entropy
        return self.distance(student, target, labels, weights)


@dataclass(frozen=True)
class SDKD(OfRegions, KD):
    """ce_weight * cross entropy + weight * `kd_loss` of regions (SD-KD).

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `kd_loss`, 0 or larger.
        temperature: T, above 0; divides the logits of both networks.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the regions of samples: none, or H_ub of `entropy_weights`, log_classes or 100.
        scales: numbers of regions along each side of the last map: 1, then 2, 4 or both; published: (1, 2) for networks
            of one family, (1, 2, 4) for others.

    Reference: Wei et al. (CVPR 2024). The defaults are those of its code for CIFAR-100.

    Raises:
        ValueError: a negative weight, a temperature that is not above 0, or other scales.
    """

    scales: Annotated[tuple[int, ...], SCALES, Weighted(("weight",))] = (1, 2)


@dataclass(frozen=True)
class SDDKD(OfRegions, DKD):
    """ce_weight * cross entropy + min(epoch / warmup_epochs, 1) * `dkd_loss` of regions (SD-DKD).

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        alpha: weight of TCKD, the divergence of the label's probability, 0 or larger.
        beta: weight of NCKD, the divergence over the other classes, 0 or larger; published by pair.
        temperature: T, above 0; divides the logits of both networks.
        warmup_epochs: epochs over which the weight of `dkd_loss` grows linearly, 0 or more; 0 for no warm-up.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the regions of samples: none, or H_ub of `entropy_weights`, log_classes or 100.
        scales: numbers of regions along each side of the last map: 1, then 2, 4 or both; published: (1, 2) for networks
            of one family, (1, 2, 4) for others.

    Reference: Wei et al. (CVPR 2024). The defaults are those of its code for CIFAR-100.

    Raises:
        ValueError: a negative weight, a temperature that is not above 0, or other scales.
    """

    scales: Annotated[tuple[int, ...], SCALES, Weighted(("alpha", "beta"))] = (1, 2)


@dataclass(frozen=True)
class SDNKD(OfRegions, NKD):
    """ce_weight * cross entropy + weight * `nkd_loss` of regions (SD-NKD).

    The published code, and so the default, keeps the label among "the other classes" of NKD.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `nkd_loss`, 0 or larger.
        gamma: weight of the other classes in `nkd_loss`, 0 or larger.
        temperature: T of the other classes, above 0.
        keep_label: True to keep the label among "the other classes"; False for the loss of NKD's authors.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the regions of samples: none, or H_ub of `entropy_weights`, log_classes or 100.
        scales: numbers of regions along each side of the last map: 1, then 2, 4 or both; published: (1, 2) for networks
            of one family, (1, 2, 4) for others.

    Reference: Wei et al. (CVPR 2024). The defaults are those of its code for CIFAR-100.

    Raises:
        ValueError: a negative weight, a temperature that is not above 0, or other scales.
    """

    keep_label: Annotated[Flag, Weighted(("gamma",))] = True
    scales: Annotated[tuple[int, ...], SCALES, Weighted(("weight",))] = (1, 2)
