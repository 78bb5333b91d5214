"""Decoupled knowledge distillation: separate weights for the label and for the distribution over the other classes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
from jaxtyping import Array, Float, Int

from kd_local.distill.class_groups import check_two_classes, label_and_others, not_the_label
from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.numerics import divergence
from kd_local.distill.sample_weights import EntropyWeight, batch_mean
from kd_local.distill.standardisation import logits_to_compare
from kd_local.ranges import WEIGHT, Flag, Temperature, WarmupEpochs, Weight, Weighted
from kd_local.shapes import check_arrays, check_labels


def dkd_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardised: bool = False,
    sample_weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """T^2 (alpha TCKD + beta NCKD) of softmax(logits / T), the mean over the batch, in nats.

    TCKD is the divergence of the distributions (p, 1 - p), where p is the probability of the label. NCKD is the
    divergence of the distributions over the other classes. `sample_weights` multiply both of each sample before the
    mean.

    Reference: Zhao et al., "Decoupled knowledge distillation" (CVPR 2022), eq. 7.

    Raises:
        ValueError: the logits differ in shape or are none, a label is not below the number of classes, or an argument
            is out of range.
    """
    student, target = logits_to_compare(student, target, temperature=temperature, standardised=standardised)
    check_two_classes(student, "dkd")
    check_arrays(student=(student, "float batch classes"), labels=(labels, "int batch"))
    check_labels(labels, student.shape[-1])
    for name, weight in (("alpha", alpha), ("beta", beta)):
        WEIGHT.check(name, weight)
    target, student = target / temperature, student / temperature
    others = not_the_label(labels, student.shape[-1])
    (binary_p, among_p), (binary_q, among_q) = (
        label_and_others(jax.nn.log_softmax(logits, axis=-1), others) for logits in (target, student)
    )
    tckd = batch_mean(divergence(binary_p, binary_q, binary_p - binary_q), sample_weights)
    nckd = batch_mean(divergence(among_p, among_q, among_p - among_q), sample_weights)
    return temperature**2 * (alpha * tckd + beta * nckd)


_TERM = Weighted(("alpha", "beta"))


@dataclass(frozen=True)
class DKD(LogitObjective):
    """ce_weight * cross entropy + min(epoch / warmup_epochs, 1) * `dkd_loss`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        alpha: weight of TCKD, the divergence of the label's probability, 0 or larger.
        beta: weight of NCKD, the divergence over the other classes, 0 or larger; published: 1 to 8, by pair.
        temperature: T, above 0; divides the logits of both networks.
        warmup_epochs: epochs over which the weight of `dkd_loss` grows linearly, 0 or more; 0 for no warm-up.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Zhao et al. (CVPR 2022). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight, or a temperature that is not above 0.
    """

    tempered: ClassVar[bool] = True
    ce_weight: Weight = 1.0
    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Annotated[Temperature, _TERM] = 4.0
    warmup_epochs: Annotated[WarmupEpochs, _TERM] = 20
    standardise: Annotated[Flag, _TERM] = False
    entropy_weight: Annotated[EntropyWeight, _TERM] = "none"

    def distance(
        self,
        student: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        sample_weights: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        return dkd_loss(
            student,
            target,
            labels,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            standardised=self.standardise,
            sample_weights=sample_weights,
        )
