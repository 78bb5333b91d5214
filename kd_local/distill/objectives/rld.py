"""Refined logit distillation: the teacher's confidence for the label, and its order of the classes below the label."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.distill.class_groups import check_two_classes, label_and_others, not_the_label, of_group
from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.numerics import divergence
from kd_local.distill.sample_weights import EntropyWeight, batch_mean
from kd_local.distill.standardisation import logits_to_compare
from kd_local.ranges import TEMPERATURE, WEIGHT, Flag, Temperature, WarmupEpochs, Weight, Weighted
from kd_local.shapes import check_arrays, check_labels


def rld_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    alpha_temperature: float = 1.0,
    standardised: bool = False,
    sample_weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """alpha SCD + beta MCD, the mean over the batch, in nats.

    SCD is A^2 KL((p, 1 - p) || (q, 1 - q)) at temperature A = `alpha_temperature`: p is the target's largest
    probability, whichever class has it, and q the student's probability of the label. MCD is T^2 times the divergence
    of the distributions, at T = `temperature`, over the classes that are less likely than the label for the target.
    Without such a class it is 0. `sample_weights` multiply both of each sample before the mean.

    Reference: Sun et al., "Knowledge distillation with refined logits" (ICCV 2025, arXiv 2408.07703), and its code.

    Raises:
        ValueError: the logits differ in shape or are none, a label is not below the number of classes, or an argument
            is out of range.
    """
    student, target = logits_to_compare(student, target, temperature=temperature, standardised=standardised)
    TEMPERATURE.check("alpha_temperature", alpha_temperature)
    for name, weight in (("alpha", alpha), ("beta", beta)):
        WEIGHT.check(name, weight)
    check_two_classes(student, "rld")
    check_arrays(student=(student, "float batch classes"), labels=(labels, "int batch"))
    check_labels(labels, student.shape[-1])
    others = not_the_label(labels, student.shape[-1])
    likeliest = not_the_label(target.argmax(axis=-1), student.shape[-1])
    binary_p, _ = label_and_others(jax.nn.log_softmax(target / alpha_temperature, axis=-1), likeliest)
    binary_q, _ = label_and_others(jax.nn.log_softmax(student / alpha_temperature, axis=-1), others)
    scd = batch_mean(divergence(binary_p, binary_q, binary_p - binary_q), sample_weights)

    of_label = jnp.where(others, 0, target).sum(axis=-1, keepdims=True)
    below = target < of_label
    some = below.any(axis=-1, keepdims=True)
    # The shares of an empty group have no finite gradient: in place of it, the group of all classes, without effect.
    group = below | ~some
    (_, among_p), (_, among_q) = (
        of_group(jax.nn.log_softmax(logits / temperature, axis=-1), group) for logits in (target, student)
    )
    each = jnp.where(some[:, 0], divergence(among_p, among_q, among_p - among_q), 0)
    return alpha * alpha_temperature**2 * scd + beta * temperature**2 * batch_mean(each, sample_weights)


_TERM = Weighted(("alpha", "beta"))


@dataclass(frozen=True)
class RLD(LogitObjective):
    """ce_weight * cross entropy + min(epoch / warmup_epochs, 1) * `rld_loss`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        alpha: weight of SCD, the divergence of the confidences, 0 or larger.
        beta: weight of MCD, the divergence over the classes below the label, 0 or larger; published: 8, 4 for some
            pairs.
        temperature: T of MCD, above 0.
        alpha_temperature: temperature of SCD, above 0; with standardised logits it is published as equal to T.
        warmup_epochs: epochs over which the weight of `rld_loss` grows linearly, 0 or more; 0 for no warm-up.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Sun et al. (ICCV 2025). The defaults are those of its code for CIFAR-100.

    Raises:
        ValueError: a negative weight, or a temperature that is not above 0.
    """

    tempered: ClassVar[bool] = True
    ce_weight: Weight = 1.0
    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Annotated[Temperature, Weighted(("beta",))] = 4.0
    alpha_temperature: Annotated[Temperature, Weighted(("alpha",))] = 1.0
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
        return rld_loss(
            student,
            target,
            labels,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            alpha_temperature=self.alpha_temperature,
            standardised=self.standardise,
            sample_weights=sample_weights,
        )
