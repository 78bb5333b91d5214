"""Multi-level logit distillation with a weak and a strong view, as published code computes it."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.numerics import widened
from kd_local.distill.objective import Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.objectives.mlkd import batch_correlation_loss, class_correlation_loss
from kd_local.distill.two_views import strong_view, with_labels_of_both
from kd_local.networks import Variables
from kd_local.ranges import TEMPERATURE, Flag, Numbers, Weight, Weighted

TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)
_TEMPERATURES = Numbers(TEMPERATURE, least=3, example=TEMPERATURES)
_WEAK_AGAIN = 2
"""The last temperatures of the list: the published sum of the strong view has the weak view's logits there."""


def mlkd_two_views_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    student_strong: Float[Array, "batch classes"],
    target_strong: Float[Array, "batch classes"],
    *,
    temperatures: tuple[float, ...] = TEMPERATURES,
    standardised: bool = False,
) -> dict[str, Float[Array, ""]]:
    """The three terms of MLKD with two views, without weights and without the cross entropy of the labels.

    The teacher's probabilities of the weak view, at T = 1, give two factors. m is the share of images whose largest
    probability is at most the median; m_c is the share of classes whose sum over the batch is at most the median.

    - `predictions`: m * the sum over T of `kd_loss` of the weak view, plus the sum of the strong view;
    - `classes`: m_c * the sum over T of `class_correlation_loss` of the weak view;
    - `samples`: m * the sum over T of `batch_correlation_loss` of the weak view.

    It follows the published code, which differs from the paper:

    - The masks multiply means over the batch. So a mask has the effect of its mean, about one half, and selects no
      image.
    - The sum of the strong view has the weak view's logits at the last two temperatures of the list.
    - The correlations of the strong view are computed, but are not part of the loss.
    - Only `kd_loss` takes standardised logits.

    Args:
        student, student_strong: logits of the student for the two views.
        target, target_strong: logits of the teacher.
        temperatures: T of each term, at least three.
        standardised: True to standardise the logits in `kd_loss` (Sun et al., CVPR 2024).

    Reference: Jin et al., "Multi-level logit distillation" (CVPR 2023), and the code of Sun et al., "Logit
    standardization in knowledge distillation" (CVPR 2024).

    Raises:
        ValueError: the logits differ in shape, or fewer than three temperatures.
    """
    _TEMPERATURES.check("temperatures", temperatures)

    def predictions(s: Array, t: Array, at: tuple[float, ...]) -> Array:
        return jnp.stack([kd_loss(s, t, temperature=each, standardised=standardised) for each in at]).sum()

    own, again = temperatures[:-_WEAK_AGAIN], temperatures[-_WEAK_AGAIN:]
    weak = predictions(student, target, temperatures)
    strong = predictions(student_strong, target_strong, own) + predictions(student, target, again)
    classes = [class_correlation_loss(student, target, temperature=each) for each in temperatures]
    samples = [batch_correlation_loss(student, target, temperature=each) for each in temperatures]
    (wide,) = widened(target)
    probabilities = jax.nn.softmax(wide, axis=-1)
    of_images = _share_up_to_median(probabilities.max(axis=-1)).astype(weak.dtype)
    of_classes = _share_up_to_median(probabilities.sum(axis=0)).astype(weak.dtype)
    return {
        "predictions": of_images * weak + strong,
        "classes": of_classes * jnp.stack(classes).sum(),
        "samples": of_images * jnp.stack(samples).sum(),
    }


def _share_up_to_median(values: Float[Array, " n"]) -> Float[Array, ""]:
    return (values <= jnp.median(values)).astype(values.dtype).mean()


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class MLKDTwoViews(Objective):
    """ce_weight * (cross entropy of both views) + weight * the sum of the terms of `mlkd_two_views_loss`.

    `MLKD` is the form with one view. Both networks see a weak view of each image (crop and flip) and a strong one
    (RandAugment). The deployed logits are those of the weak view.

    Attributes:
        ce_weight: weight of the sum of the two cross entropies of the labels, 0 or larger.
        weight: weight of the other terms, 0 or larger; 9 with standardised logits.
        temperatures: T of each term, at least three; the strong view's sum has the weak view's logits at the last two.
            With standardised logits the published list is 2, 3, 5, 2, 6.
        standardise: True to standardise the logits in `kd_loss` (Sun et al., CVPR 2024).

    Reference: Jin et al. (CVPR 2023). The defaults are those of its code for CIFAR-100.

    Raises:
        ValueError: a negative weight, or fewer than three temperatures, or one that is not above 0.
    """

    reads: ClassVar[Literal["logits", "features"]] = "logits"
    needs_strong_view: ClassVar[bool] = True
    has_other_task_terms: ClassVar[bool] = True
    ce_weight: Weight = 0.1
    weight: Weight = 0.9
    temperatures: Annotated[tuple[float, ...], _TEMPERATURES, _TERM] = TEMPERATURES
    standardise: Annotated[Flag, _TERM] = False

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        strong = strong_view(batch)
        terms = mlkd_two_views_loss(
            batch.student.logits,
            batch.teacher.logits,
            strong.student.logits,
            strong.teacher.logits,
            temperatures=self.temperatures,
            standardised=self.standardise,
        )
        weights = dict.fromkeys(terms, self.weight)
        return with_labels_of_both(batch, terms, ce_weight=self.ce_weight, weights=weights)
