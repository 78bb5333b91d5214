"""Probabilistic knowledge transfer: the similarities of an image to the others, as a distribution over the batch."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import norms, product, widened
from kd_local.distill.objective import Objective, ObjectiveLoss, TrainingBatch
from kd_local.networks import Variables
from kd_local.ranges import Weight
from kd_local.shapes import check_arrays

EPSILON = 1e-7


def pkt_loss(student: Float[Array, "batch s"], teacher: Float[Array, "batch t"]) -> Float[Array, ""]:
    """The mean of p log(p / q) over all pairs of images.

    p (teacher) and q (student) are matrices of (cosine + 1) / 2 between images, each row divided by its sum.

    Reference: Passalis and Tefas, "Learning deep representations with probabilistic knowledge transfer" (ECCV 2018),
    eqs. 4 to 8 with the cosine kernel, and with the mean of the terms as in their code.

    Raises:
        ValueError: the features differ in images or are no vectors.
    """

    def probabilities(features: Array) -> Array:
        directions = features / (norms(features) + EPSILON)
        similarity = (product(directions, directions.T) + 1) / 2
        return similarity / similarity.sum(axis=1, keepdims=True)

    check_arrays(student=(student, "float batch s"), teacher=(teacher, "float batch t"))
    student, teacher = widened(student, teacher)
    q, p = probabilities(student), probabilities(teacher)
    return (p * jnp.log((p + EPSILON) / (q + EPSILON))).mean()


@dataclass(frozen=True)
class PKT(Objective):
    """ce_weight * cross entropy + weight * `pkt_loss` of the pooled features, the inputs of the last layers.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `pkt_loss`, 0 or larger.

    Reference: Passalis and Tefas (ECCV 2018). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 30000.0

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        distillation = pkt_loss(batch.student.pooled, batch.teacher.pooled)
        return with_labels(batch, distillation, ce_weight=self.ce_weight, weight=self.weight)
