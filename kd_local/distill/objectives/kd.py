"""Knowledge distillation: the divergence of the student's softened probabilities from the teacher's."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
from jaxtyping import Array, Float, Int

from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.numerics import divergence
from kd_local.distill.sample_weights import EntropyWeight, batch_mean
from kd_local.distill.standardisation import logits_to_compare
from kd_local.ranges import Flag, Temperature, Weight, Weighted


def kd_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    temperature: float = 4.0,
    standardised: bool = False,
    sample_weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """T^2 KL(softmax(target / T) || softmax(student / T)) of logits, the mean over the batch, in nats.

    `sample_weights` multiply the losses of the samples before the mean.

    Reference: Hinton et al., "Distilling the knowledge in a neural network" (arXiv 1503.02531), section 2.

    Raises:
        ValueError: the logits differ in shape or are none, or an argument is out of range.
    """
    each = softened_divergence(student, target, temperature=temperature, standardised=standardised)
    return temperature**2 * batch_mean(each, sample_weights)


def softened_divergence(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    temperature: float,
    standardised: bool = False,
) -> Float[Array, " batch"]:
    """KL(softmax(target / T) || softmax(student / T)) of the logits of each image, in nats.

    Raises:
        ValueError: see `kd_loss`.
    """
    student, target = logits_to_compare(student, target, temperature=temperature, standardised=standardised)
    target, student = target / temperature, student / temperature
    sums = [jax.nn.logsumexp(logits, axis=-1, keepdims=True) for logits in (target, student)]
    difference = (target - student) - (sums[0] - sums[1])
    return divergence(target - sums[0], student - sums[1], difference)


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class KD(LogitObjective):
    """ce_weight * cross entropy + weight * `kd_loss`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `kd_loss`, 0 or larger.
        temperature: T, above 0; divides the logits of both networks.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Hinton et al. (arXiv 1503.02531). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight, or a temperature that is not above 0.
    """

    tempered: ClassVar[bool] = True
    ce_weight: Weight = 0.1
    weight: Weight = 0.9
    temperature: Annotated[Temperature, _TERM] = 4.0
    standardise: Annotated[Flag, _TERM] = False
    entropy_weight: Annotated[EntropyWeight, _TERM] = "none"

    def distance(
        self,
        student: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        sample_weights: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        return kd_loss(
            student,
            target,
            temperature=self.temperature,
            standardised=self.standardise,
            sample_weights=sample_weights,
        )
