"""Normalised knowledge distillation: cross entropies of the label's probability, and of the other classes."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.distill.class_groups import check_two_classes, not_the_label, of_group
from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.sample_weights import EntropyWeight, batch_mean
from kd_local.distill.standardisation import logits_to_compare
from kd_local.ranges import WEIGHT, Flag, Temperature, Weight, Weighted
from kd_local.shapes import check_arrays, check_labels


def nkd_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
    keep_label: bool = False,
    standardised: bool = False,
    sample_weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """-p_y log q_y + gamma T^2 (cross entropy of the distributions over the other classes), the mean over the batch.

    p_y and q_y are the probabilities of the label for target and student, at temperature 1. The distributions over the
    other classes have temperature T. With `keep_label` the label is among "the others", as in the code of SDD (Wei et
    al., CVPR 2024). `sample_weights` multiply both terms of each sample before the mean. The loss is in nats, and not 0
    for equal logits.

    Reference: Yang et al., "From knowledge distillation to self-knowledge distillation: a unified approach with
    normalized loss and customized soft labels" (ICCV 2023), and its code.

    Raises:
        ValueError: the logits differ in shape or are none, a label is not below the number of classes, or an argument
            is out of range.
    """
    student, target = logits_to_compare(student, target, temperature=temperature, standardised=standardised)
    WEIGHT.check("gamma", gamma)
    check_two_classes(student, "nkd")
    check_arrays(student=(student, "float batch classes"), labels=(labels, "int batch"))
    check_labels(labels, student.shape[-1])
    others = not_the_label(labels, student.shape[-1])
    log_p, log_q = (jax.nn.log_softmax(logits, axis=-1) for logits in (target, student))
    of_label = -jnp.where(others, 0, jnp.exp(log_p) * log_q).sum(axis=-1)
    group = others | keep_label
    (_, among_p), (_, among_q) = (
        of_group(jax.nn.log_softmax(logits / temperature, axis=-1), group) for logits in (target, student)
    )
    of_others = -(jnp.exp(among_p) * among_q).sum(axis=-1)
    return batch_mean(of_label, sample_weights) + gamma * temperature**2 * batch_mean(of_others, sample_weights)


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class NKD(LogitObjective):
    """ce_weight * cross entropy + weight * `nkd_loss`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `nkd_loss`, 0 or larger.
        gamma: weight of the other classes in `nkd_loss`, 0 or larger.
        temperature: T of the other classes, above 0.
        keep_label: True to keep the label among "the other classes", as in the code of SDD.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Yang et al. (ICCV 2023). The defaults are those of its code.

    Raises:
        ValueError: a negative weight, or a temperature that is not above 0.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 1.0
    gamma: Annotated[Weight, _TERM] = 1.5
    temperature: Annotated[Temperature, Weighted(("gamma",))] = 1.0
    keep_label: Annotated[Flag, Weighted(("gamma",))] = False
    standardise: Annotated[Flag, _TERM] = False
    entropy_weight: Annotated[EntropyWeight, _TERM] = "none"

    def distance(
        self,
        student: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        sample_weights: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        return nkd_loss(
            student,
            target,
            labels,
            gamma=self.gamma,
            temperature=self.temperature,
            keep_label=self.keep_label,
            standardised=self.standardise,
            sample_weights=sample_weights,
        )
