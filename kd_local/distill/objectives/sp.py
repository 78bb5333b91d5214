"""Similarity-preserving distillation: images with similar teacher features should have similar student features."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import product, unit_vectors, widened
from kd_local.distill.objective import Objective, ObjectiveLoss, TrainingBatch
from kd_local.networks import Variables
from kd_local.ranges import Weight
from kd_local.shapes import check_arrays


def similarity_loss(student: Float[Array, "batch *s"], teacher: Float[Array, "batch *t"]) -> Float[Array, ""]:
    """||G_t - G_s||^2 / batch^2. G is F F^T with rows scaled to unit vectors; row i of F has the features of image i.

    Reference: Tung and Mori, "Similarity-preserving knowledge distillation" (ICCV 2019), eqs. 1 to 4.

    Raises:
        ValueError: the features differ in images or shape, or are no maps.
    """

    def similarity(features: Array) -> Array:
        rows = features.reshape(len(features), -1)
        return unit_vectors(product(rows, rows.T))

    check_arrays(student=(student, "float batch ..."), teacher=(teacher, "float batch ..."))
    student, teacher = widened(student, teacher)
    return jnp.square(similarity(teacher) - similarity(student)).mean()


@dataclass(frozen=True)
class SP(Objective):
    """ce_weight * cross entropy + weight * `similarity_loss` of the last stage.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `similarity_loss`, 0 or larger.

    Reference: Tung and Mori (ICCV 2019). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 3000.0

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        distillation = similarity_loss(batch.student.features[-1], batch.teacher.features[-1])
        return with_labels(batch, distillation, ce_weight=self.ce_weight, weight=self.weight)
