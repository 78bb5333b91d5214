"""Relational knowledge distillation: distances between images' features, and angles between triples of them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import unit_vectors, widened
from kd_local.distill.objective import Objective, ObjectiveLoss, TrainingBatch
from kd_local.networks import Variables
from kd_local.ranges import WEIGHT, Weight
from kd_local.shapes import check_arrays

EPSILON = 1e-12


def rkd_loss(
    student: Float[Array, "batch s"],
    teacher: Float[Array, "batch t"],
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Float[Array, ""]:
    """The weighted sum of two mean Huber losses (delta 1): of all pairs' distances, and of all triples' cosines.

    Distances are relative to their mean. Squared distances under 1e-12 count as 1e-12. Memory grows with batch^2 (batch
    + features).

    Reference: Park et al., "Relational knowledge distillation" (CVPR 2019), eqs. 5 to 10.

    Raises:
        ValueError: the features differ in images or are no vectors, or a weight is out of range.
    """

    def relations(features: Array) -> tuple[Array, Array]:
        differences = features[:, None] - features[None]  # the Gram matrix would lose the digits of small ones
        others = ~jnp.eye(len(features), dtype=bool)
        squares = jnp.sum(differences * differences, axis=-1)
        distances = jnp.where(others, jnp.sqrt(jnp.maximum(squares, EPSILON)), 0)
        directions = unit_vectors(differences)
        cosines = jnp.einsum("jia,jka->jik", directions, directions, precision=jax.lax.Precision.HIGHEST)
        mean = distances.sum() / max(distances.size - len(distances), 1)
        return distances / jnp.maximum(mean, EPSILON), cosines

    check_arrays(student=(student, "float batch s"), teacher=(teacher, "float batch t"))
    for name, weight in (("distance_weight", distance_weight), ("angle_weight", angle_weight)):
        WEIGHT.check(name, weight)
    student, teacher = widened(student, teacher)
    (distances, cosines), (target_distances, target_cosines) = relations(student), relations(teacher)
    distance = optax.losses.huber_loss(distances, target_distances).mean()
    return distance_weight * distance + angle_weight * optax.losses.huber_loss(cosines, target_cosines).mean()


@dataclass(frozen=True)
class RKD(Objective):
    """ce_weight * cross entropy + `rkd_loss` of the pooled features, the inputs of the last layers.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        distance_weight: weight of the distances between images, 0 or larger.
        angle_weight: weight of the angles between triples of images, 0 or larger.

    Reference: Park et al. (CVPR 2019). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight.
    """

    ce_weight: Weight = 1.0
    distance_weight: Weight = 25.0
    angle_weight: Weight = 50.0

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        distillation = rkd_loss(
            batch.student.pooled,
            batch.teacher.pooled,
            distance_weight=self.distance_weight,
            angle_weight=self.angle_weight,
        )
        return with_labels(batch, distillation, ce_weight=self.ce_weight)
