"""DIST: the correlation of the student's and the teacher's probabilities, within samples and within classes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import norms
from kd_local.distill.objective import Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.standardisation import logits_to_compare
from kd_local.networks import Variables
from kd_local.ranges import WEIGHT, Flag, Temperature, Weight, Weighted
from kd_local.shapes import check_arrays

EPSILON = 1e-8


def pearson_distance(a: Float[Array, "rows n"], b: Float[Array, "rows n"]) -> Float[Array, ""]:
    """1 - Pearson's correlation of the rows of `a` and `b`, averaged over rows. A constant row has correlation 0."""
    check_arrays(a=(a, "float rows n"), b=(b, "float rows n"))
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    return 1 - (jnp.sum(a * b, axis=-1, keepdims=True) / (norms(a) * norms(b) + EPSILON)).mean()


def dist_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    standardised: bool = False,
) -> Float[Array, ""]:
    """tau^2 (beta d(rows) + gamma d(columns)) of softmax(logits / tau), where d is `pearson_distance`.

    Reference: Huang et al., "Knowledge distillation from a stronger teacher" (NeurIPS 2022), eqs. 8 to 10.

    Raises:
        ValueError: the logits differ in shape or are none, or an argument is out of range.
    """
    student, target = logits_to_compare(student, target, temperature=temperature, standardised=standardised)
    for name, weight in (("beta", beta), ("gamma", gamma)):
        WEIGHT.check(name, weight)
    student, target = (jax.nn.softmax(logits / temperature, axis=-1) for logits in (student, target))
    between, within = pearson_distance(student, target), pearson_distance(student.T, target.T)
    return temperature**2 * (beta * between + gamma * within)


_TERM = Weighted(("beta", "gamma"))


@dataclass(frozen=True)
class DIST(Objective):
    """ce_weight * cross entropy + `dist_loss`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        beta: weight of the correlation of each sample's probabilities, 0 or larger.
        gamma: weight of the correlation of each class's probabilities over the batch, 0 or larger.
        temperature: tau, above 0; divides the logits of both networks.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).

    Reference: Huang et al. (NeurIPS 2022), eq. 10. The defaults are the paper's.

    Raises:
        ValueError: a negative weight, or a temperature that is not above 0.
    """

    reads: ClassVar[Literal["logits", "features"]] = "logits"
    ce_weight: Weight = 1.0
    beta: Weight = 1.0
    gamma: Weight = 1.0
    temperature: Annotated[Temperature, _TERM] = 1.0
    standardise: Annotated[Flag, _TERM] = False

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        distillation = dist_loss(
            batch.student.logits,
            batch.teacher.logits,
            beta=self.beta,
            gamma=self.gamma,
            temperature=self.temperature,
            standardised=self.standardise,
        )
        return with_labels(batch, distillation, ce_weight=self.ce_weight)
