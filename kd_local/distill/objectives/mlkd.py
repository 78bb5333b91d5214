"""Multi-level logit distillation: predictions, and correlations of samples and of classes, at several temperatures."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.numerics import product, widened
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.sample_weights import EntropyWeight, of_whole_batch
from kd_local.distill.standardisation import logits_to_compare
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
    sample_weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """The sum over temperatures of `kd_loss`, `batch_correlation_loss` and `class_correlation_loss`.

    Only `kd_loss` uses standardised logits, as in the code of Sun et al. (CVPR 2024). `sample_weights` multiply the
    divergence of each sample. The correlations compare all samples with each other: they are multiplied by the mean
    weight.

    Reference: Jin et al. (CVPR 2023), section 3.2.

    Raises:
        ValueError: there is no temperature; see also `kd_loss`.
    """
    _TEMPERATURES.check("temperatures", temperatures)
    total, _ = widened(jnp.zeros((), student.dtype), student)
    for temperature in temperatures:
        total += kd_loss(
            student, target, temperature=temperature, standardised=standardised, sample_weights=sample_weights
        )
        for correlation in (batch_correlation_loss, class_correlation_loss):
            total += of_whole_batch(correlation(student, target, temperature=temperature), sample_weights)
    return total


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class MLKD(LogitObjective):
    """ce_weight * cross entropy + weight * `mlkd_loss`.

    This implementation uses one view of every image. The published code uses a weakly and a strongly augmented view,
    and leaves out the weakly augmented images for which the teacher is most confident.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `mlkd_loss`, 0 or larger.
        temperatures: T of each term of `mlkd_loss`, at least one, each above 0.
        standardise: True to standardise the logits in `kd_loss` (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Jin et al. (CVPR 2023). The defaults are those of its code for CIFAR-100.

    Raises:
        ValueError: a negative weight, no temperature, or one that is not above 0.
    """

    tempered: ClassVar[bool] = True
    ce_weight: Weight = 0.1
    weight: Weight = 0.9
    temperatures: Annotated[tuple[float, ...], _TEMPERATURES, _TERM] = TEMPERATURES
    standardise: Annotated[Flag, _TERM] = False
    entropy_weight: Annotated[EntropyWeight, _TERM] = "none"

    @classmethod
    def as_distance(
        cls, *, temperature: float | None = None, standardise: bool = False, entropy_weight: str = "none"
    ) -> "MLKD":
        temperatures = TEMPERATURES if temperature is None else (temperature,)
        return cls(temperatures=temperatures, standardise=standardise, entropy_weight=entropy_weight)

    def distance(
        self,
        student: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        sample_weights: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        return mlkd_loss(
            student,
            target,
            temperatures=self.temperatures,
            standardised=self.standardise,
            sample_weights=sample_weights,
        )
