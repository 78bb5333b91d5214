"""DIST: the correlation of the student's and the teacher's probabilities, within samples and within classes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.numerics import norms
from kd_local.distill.sample_weights import EntropyWeight, batch_mean, of_whole_batch
from kd_local.distill.standardisation import logits_to_compare
from kd_local.ranges import WEIGHT, Flag, Temperature, Weight, Weighted
from kd_local.shapes import check_arrays

EPSILON = 1e-8


def pearson_distance(
    a: Float[Array, "rows n"], b: Float[Array, "rows n"], weights: Float[Array, " rows"] | None = None
) -> Float[Array, ""]:
    """1 - Pearson's correlation of the rows of `a` and `b`, averaged over rows. A constant row has correlation 0.

    `weights` multiply the distances of the rows before the average.
    """
    check_arrays(a=(a, "float rows n"), b=(b, "float rows n"))
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    correlations = jnp.sum(a * b, axis=-1, keepdims=True) / (norms(a) * norms(b) + EPSILON)
    return 1 - correlations.mean() if weights is None else batch_mean(1 - correlations[:, 0], weights)


def dist_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    standardised: bool = False,
    sample_weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """tau^2 (beta d(rows) + gamma d(columns)) of softmax(logits / tau), where d is `pearson_distance`.

    `sample_weights` multiply the d of each row. Columns compare all samples with each other: their d is multiplied by
    the mean weight.

    Reference: Huang et al., "Knowledge distillation from a stronger teacher" (NeurIPS 2022), eqs. 8 to 10.

    Raises:
        ValueError: the logits differ in shape or are none, or an argument is out of range.
    """
    student, target = logits_to_compare(student, target, temperature=temperature, standardised=standardised)
    for name, weight in (("beta", beta), ("gamma", gamma)):
        WEIGHT.check(name, weight)
    student, target = (jax.nn.softmax(logits / temperature, axis=-1) for logits in (student, target))
    between = pearson_distance(student, target, sample_weights)
    within = of_whole_batch(pearson_distance(student.T, target.T), sample_weights)
    return temperature**2 * (beta * between + gamma * within)


_TERM = Weighted(("beta", "gamma"))


@dataclass(frozen=True)
class DIST(LogitObjective):
    """ce_weight * cross entropy + `dist_loss`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        beta: weight of the correlation of each sample's probabilities, 0 or larger.
        gamma: weight of the correlation of each class's probabilities over the batch, 0 or larger.
        temperature: tau, above 0; divides the logits of both networks.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples: none, or H_ub of `entropy_weights`, log_classes or 100.

    Reference: Huang et al. (NeurIPS 2022), eq. 10. The defaults are the paper's.

    Raises:
        ValueError: a negative weight, or a temperature that is not above 0.
    """

    tempered: ClassVar[bool] = True
    ce_weight: Weight = 1.0
    beta: Weight = 1.0
    gamma: Weight = 1.0
    temperature: Annotated[Temperature, _TERM] = 1.0
    standardise: Annotated[Flag, _TERM] = False
    entropy_weight: Annotated[EntropyWeight, _TERM] = "none"

    def distance(
        self,
        student: Float[Array, "batch classes"],
        target: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        sample_weights: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        return dist_loss(
            student,
            target,
            beta=self.beta,
            gamma=self.gamma,
            temperature=self.temperature,
            standardised=self.standardise,
            sample_weights=sample_weights,
        )
