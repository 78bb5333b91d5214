"""Transformed teacher matching: the student matches a power of the teacher's probabilities, without a temperature."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.numerics import divergence
from kd_local.distill.sample_weights import EntropyWeight, batch_mean
from kd_local.distill.standardisation import logits_to_compare
from kd_local.ranges import Flag, Number, Weight, Weighted

GAMMA = Number(0, 100, open_low=True, example=0.2)
_TERM = Weighted(("weight",))


def ttm_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    gamma: float = 0.1,
    weighted: bool = False,
    standardised: bool = False,
    sample_weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """KL(p^gamma / Z || q), the mean over the batch, in nats, where Z is the sum of p^gamma over the classes.

    p and q are the probabilities of the target and of the student, at temperature 1. With `weighted`, Z multiplies the
    loss of each sample: it is larger where the target is less sure (WTTM). `sample_weights` multiply the losses too.

    Reference: Zheng and Yang, "Knowledge distillation based on transformed teacher matching" (ICLR 2024, arXiv
    2402.11148).

    Raises:
        ValueError: the logits differ in shape or are none, or an argument is out of range.
    """
    student, target = logits_to_compare(student, target, temperature=1.0, standardised=standardised)
    GAMMA.check("gamma", gamma)
    log_power = gamma * jax.nn.log_softmax(target, axis=-1)
    log_z = jax.nn.logsumexp(log_power, axis=-1, keepdims=True)
    log_p, log_q = log_power - log_z, jax.nn.log_softmax(student, axis=-1)
    each = divergence(log_p, log_q, log_p - log_q)
    return batch_mean(jnp.exp(log_z[:, 0]) * each if weighted else each, sample_weights)


@dataclass(frozen=True)
class TTM(LogitObjective):
    """ce_weight * cross entropy + weight * `ttm_loss`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `ttm_loss`, 0 or larger; published by pair, 45 for VGG-13 to VGG-8.
        gamma: exponent of the teacher's probabilities, above 0; below 1 it makes them more equal.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Zheng and Yang (ICLR 2024). The defaults are those of its code for VGG-13 to VGG-8 on CIFAR-100.

    Raises:
        ValueError: a negative weight, or a gamma that is not above 0.
    """

    weighted: ClassVar[bool] = False
    ce_weight: Weight = 1.0
    weight: Weight = 45.0
    gamma: Annotated[float, GAMMA, _TERM] = 0.1
    standardise: Annotated[Flag, _TERM] = False
    entropy_weight: Annotated[EntropyWeight, _TERM] = "none"

    def distance(
        self,
        student: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        sample_weights: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        return ttm_loss(
            student,
            target,
            gamma=self.gamma,
            weighted=self.weighted,
            standardised=self.standardise,
            sample_weights=sample_weights,
        )


@dataclass(frozen=True)
class WTTM(TTM):
    """ce_weight * cross entropy + weight * `ttm_loss` with weights of the samples, which grow with Z.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `ttm_loss`, 0 or larger; published by pair, 4 for VGG-13 to VGG-8 beside CRD.
        gamma: exponent of the teacher's probabilities, above 0; below 1 it makes them more equal.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Zheng and Yang (ICLR 2024). The defaults are those of its code for VGG-13 to VGG-8 on CIFAR-100, beside
    CRD.

    Raises:
        ValueError: a negative weight, or a gamma that is not above 0.
    """

    weighted: ClassVar[bool] = True
    weight: Weight = 4.0
    gamma: Annotated[float, GAMMA, _TERM] = 0.2
