"""Generalised decoupled knowledge distillation: separate weights for the teacher's likeliest classes and the others."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.distill.class_groups import of_group
from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.numerics import divergence
from kd_local.distill.sample_weights import EntropyWeight, batch_mean
from kd_local.distill.standardisation import logits_to_compare
from kd_local.ranges import WEIGHT, Flag, Number, Temperature, WarmupEpochs, Weight, Weighted

_TOP = Number(1, 10**6, whole=True, example=5)


def gdkd_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    k: int = 5,
    mass_weight: float = 1.0,
    top_weight: float = 1.0,
    rest_weight: float = 8.0,
    temperature: float = 4.0,
    standardised: bool = False,
    sample_weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """T^2 (mass_weight masses + top_weight top + rest_weight rest) of softmax(logits / T), the mean over the batch.

    The k likeliest classes of the target are one group, all others another. `masses` is the divergence of the
    probabilities of the two groups; `top` and `rest` are those of the distributions within a group. All are in nats.
    Of classes with equal logits the first count as likelier. `sample_weights` multiply all three of each sample before
    the mean.

    Reference: Zheng and Cheng, "Rethinking decoupled knowledge distillation: a predictive distribution perspective"
    (TNNLS 2026, arXiv 2512.04625), and its code.

    Raises:
        ValueError: the logits differ in shape or are none, k is not below the number of classes, or an argument is out
            of range.
    """
    student, target = logits_to_compare(student, target, temperature=temperature, standardised=standardised)
    _TOP.check("k", k)
    if k >= student.shape[-1]:
        raise ValueError(f"k is {k}: use fewer than the {student.shape[-1]} classes, so that some are not among the k")
    for name, weight in (("mass_weight", mass_weight), ("top_weight", top_weight), ("rest_weight", rest_weight)):
        WEIGHT.check(name, weight)
    _, likeliest = jax.lax.top_k(jax.lax.stop_gradient(target), k)
    top = jnp.put_along_axis(jnp.zeros(target.shape, bool), likeliest, True, axis=-1, inplace=False)
    log_p, log_q = (jax.nn.log_softmax(logits / temperature, axis=-1) for logits in (target, student))
    masses, within = [], []
    for group in (top, ~top):
        (mass_p, among_p), (mass_q, among_q) = (of_group(log, group) for log in (log_p, log_q))
        masses.append((mass_p, mass_q))
        within.append(batch_mean(divergence(among_p, among_q, among_p - among_q), sample_weights))
    masses_p, masses_q = (jnp.concatenate(each, axis=-1) for each in zip(*masses, strict=True))
    of_masses = batch_mean(divergence(masses_p, masses_q, masses_p - masses_q), sample_weights)
    return temperature**2 * (mass_weight * of_masses + top_weight * within[0] + rest_weight * within[1])


_TERM = Weighted(("mass_weight", "top_weight", "rest_weight"))


@dataclass(frozen=True)
class GDKD(LogitObjective):
    """ce_weight * cross entropy + min(epoch / warmup_epochs, 1) * `gdkd_loss`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        k: number of the teacher's likeliest classes that are one group, above 0 and below the number of classes.
        mass_weight: weight of the divergence of the groups' probabilities, 0 or larger.
        top_weight: weight of the divergence within the k likeliest classes, 0 or larger; published: 2 for ResNet-32x4
            to ResNet-8x4.
        rest_weight: weight of the divergence within all other classes, 0 or larger.
        temperature: T, above 0; divides the logits of both networks.
        warmup_epochs: epochs over which the weight of `gdkd_loss` grows linearly, 0 or more; 0 for no warm-up.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Zheng and Cheng (TNNLS 2026). The defaults are those of its code for CIFAR-100.

    Raises:
        ValueError: a negative weight, a k below 1, or a temperature that is not above 0.
    """

    tempered: ClassVar[bool] = True
    ce_weight: Weight = 1.0
    k: Annotated[int, _TOP, _TERM] = 5
    mass_weight: Weight = 1.0
    top_weight: Weight = 1.0
    rest_weight: Weight = 8.0
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
        return gdkd_loss(
            student,
            target,
            k=self.k,
            mass_weight=self.mass_weight,
            top_weight=self.top_weight,
            rest_weight=self.rest_weight,
            temperature=self.temperature,
            standardised=self.standardise,
            sample_weights=sample_weights,
        )
