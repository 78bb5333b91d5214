"""CRLD: cross-view consistency, where the teacher is confident."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import jax
from jaxtyping import Array, Float

from kd_local.distill.numerics import widened
from kd_local.distill.objective import Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.objectives.kd import softened_divergence
from kd_local.distill.two_views import strong_view, with_labels_of_both
from kd_local.networks import Variables
from kd_local.ranges import Number, Temperature, Weight, Weighted, check_arguments

_CONFIDENCE = Number(0, 1, example=0.9, note="a probability; 0 takes every image")


def crld_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    student_strong: Float[Array, "batch classes"],
    target_strong: Float[Array, "batch classes"],
    *,
    temperature: float = 4.0,
    weak_threshold: float = 0.9,
    strong_threshold: float = 0.2,
) -> dict[str, Float[Array, ""]]:
    """The two terms of CRLD, without weights and without the cross entropy of the labels.

    With d(s, t) = T^2 KL(softmax(t / T) || softmax(s / T)) of an image, the weak view w and the strong view s:

    - `within_view`: the mean of (d(s_w, t_w) + d(s_s, t_s)) 1(max softmax(t_w) >= weak_threshold);
    - `cross_view`: the mean of (d(s_s, t_w) + d(s_w, t_s)) 1(max softmax(t_s) >= strong_threshold).

    Each is a mean over the whole batch, not over the images above the threshold.

    Args:
        student, student_strong: logits of the student for the two views.
        target, target_strong: logits of the teacher.
        temperature: T, above 0.
        weak_threshold, strong_threshold: probabilities that the teacher's largest one must reach.

    Reference: Zhang et al., "Cross-view consistency regularisation for knowledge distillation" (arXiv 2412.16493), and
    its code.

    Raises:
        ValueError: the logits differ in shape, or an argument is out of range.
    """
    check_arguments(
        {"weak_threshold": _CONFIDENCE, "strong_threshold": _CONFIDENCE},
        weak_threshold=weak_threshold,
        strong_threshold=strong_threshold,
    )

    def distance(s: Array, t: Array) -> Array:
        return temperature**2 * softened_divergence(s, t, temperature=temperature)

    within = distance(student, target) + distance(student_strong, target_strong)
    cross = distance(student_strong, target) + distance(student, target_strong)
    return {
        "within_view": (within * _confident(target, weak_threshold).astype(within.dtype)).mean(),
        "cross_view": (cross * _confident(target_strong, strong_threshold).astype(cross.dtype)).mean(),
    }


def _confident(logits: Array, threshold: float) -> Array:
    (logits,) = widened(logits)
    return jax.nn.softmax(logits, axis=-1).max(axis=-1) >= threshold


@dataclass(frozen=True)
class CRLD(Objective):
    """ce_weight * (cross entropy of both views) + within_weight * within + cross_weight * cross, see `crld_loss`.

    Both networks see a weak view of each image (crop and flip) and a strong one (RandAugment). The deployed logits are
    those of the weak view.

    Attributes:
        ce_weight: weight of the sum of the two cross entropies of the labels, 0 or larger.
        within_weight: weight of the divergences within a view, 0 or larger.
        cross_weight: weight of the divergences between the views, 0 or larger.
        temperature: T, above 0; divides the logits of both networks.
        weak_threshold: the teacher's largest probability for the weak view, at T = 1, must reach it in the first term.
        strong_threshold: the same for the strong view in the second term.

    Reference: Zhang et al. (arXiv 2412.16493). The defaults are those of its code for CIFAR-100.

    Raises:
        ValueError: a negative weight, a temperature that is not above 0, or a threshold outside of [0, 1].
    """

    reads: ClassVar[Literal["logits", "features"]] = "logits"
    needs_strong_view: ClassVar[bool] = True
    has_other_task_terms: ClassVar[bool] = True
    ce_weight: Weight = 1.0
    within_weight: Weight = 2.0
    cross_weight: Weight = 0.5
    temperature: Annotated[Temperature, Weighted(("within_weight", "cross_weight"))] = 4.0
    weak_threshold: Annotated[float, _CONFIDENCE, Weighted(("within_weight",))] = 0.9
    strong_threshold: Annotated[float, _CONFIDENCE, Weighted(("cross_weight",))] = 0.2

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        strong = strong_view(batch)
        terms = crld_loss(
            batch.student.logits,
            batch.teacher.logits,
            strong.student.logits,
            strong.teacher.logits,
            temperature=self.temperature,
            weak_threshold=self.weak_threshold,
            strong_threshold=self.strong_threshold,
        )
        weights = {"within_view": self.within_weight, "cross_view": self.cross_weight}
        return with_labels_of_both(batch, terms, ce_weight=self.ce_weight, weights=weights)
