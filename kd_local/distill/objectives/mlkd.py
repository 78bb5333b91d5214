"""Multi-level logit distillation: predictions, and correlations of samples and of classes, at several temperatures."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import product, widened
from kd_local.distill.objective import Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.standardisation import logits_to_compare
from kd_local.networks import Variables
from kd_local.ranges import TEMPERATURE, Flag, Numbers, Weight, Weighted

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
_TEMPERATURES = Numbers(TEMPERATURE, least=1, example=(2, 3, 4))


def batch_correlation_loss(
    student: Float[Array, "batch classes"], target: Float[Array, "batch classes"], *, temperature: float = 4.0
) -> Float[Array, ""]:
    """||P_t P_t^T - P_s P_s^T||^2 / batch, where P is softmax(logits / T): it compares correlations of samples.

    Reference: Jin et al., "Multi-level logit distillation" (CVPR 2023), section 3.2, batch-level alignment.

    Raises:
        ValueError: see `kd_loss`.
    """
    student, target = logits_to_compare(student, target, temperature=temperature, standardised=False)
    student, target = (jax.nn.softmax(x / temperature, axis=-1) for x in (student, target))
    return jnp.square(product(target, target.T) - product(student, student.T)).sum() / len(student)


def class_correlation_loss(
    student: Float[Array, "batch classes"], target: Float[Array, "batch classes"], *, temperature: float = 4.0
) -> Float[Array, ""]:
    """||P_t^T P_t - P_s^T P_s||^2 / classes, where P is softmax(logits / T): it compares correlations of classes.

    Reference: Jin et al. (CVPR 2023), section 3.2, class-level alignment.

    Raises:
        ValueError: see `kd_loss`.
    """
    student, target = logits_to_compare(student, target, temperature=temperature, standardised=False)
    student, target = (jax.nn.softmax(x / temperature, axis=-1) for x in (student, target))
    return jnp.square(product(target.T, target) - product(student.T, student)).sum() / student.shape[-1]


def mlkd_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    temperatures: tuple[float, ...] = TEMPERATURES,
    standardised: bool = False,
) -> Float[Array, ""]:
    """The sum over temperatures of `kd_loss`, `batch_correlation_loss` and `class_correlation_loss`.

    Only `kd_loss` uses standardised logits, as in the code of Sun et al. (CVPR 2024).

    Reference: Jin et al. (CVPR 2023), section 3.2.

    Raises:
        ValueError: there is no temperature; see also `kd_loss`.
    """
    _TEMPERATURES.check("temperatures", temperatures)
    total, _ = widened(jnp.zeros((), student.dtype), student)
    for temperature in temperatures:
        total += kd_loss(student, target, temperature=temperature, standardised=standardised)
        total += batch_correlation_loss(student, target, temperature=temperature)
        total += class_correlation_loss(student, target, temperature=temperature)
    return total


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class MLKD(Objective):
    """ce_weight * cross entropy + weight * `mlkd_loss`.

    This implementation uses one view of every image. The published code uses a weakly and a strongly augmented view,
    and leaves out the weakly augmented images for which the teacher is most confident.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `mlkd_loss`, 0 or larger.
        temperatures: T of each term of `mlkd_loss`, at least one, each above 0.
        standardise: True to standardise the logits in `kd_loss` (Sun et al., CVPR 2024).

    Reference: Jin et al. (CVPR 2023). The defaults are those of its code for CIFAR-100.

    Raises:
        ValueError: a negative weight, no temperature, or one that is not above 0.
    """

    reads: ClassVar[Literal["logits", "features"]] = "logits"
    ce_weight: Weight = 0.1
    weight: Weight = 0.9
    temperatures: Annotated[tuple[float, ...], _TEMPERATURES, _TERM] = TEMPERATURES
    standardise: Annotated[Flag, _TERM] = False

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        distillation = mlkd_loss(
            batch.student.logits,
            batch.teacher.logits,
            temperatures=self.temperatures,
            standardised=self.standardise,
        )
        return with_labels(batch, distillation, ce_weight=self.ce_weight, weight=self.weight)
