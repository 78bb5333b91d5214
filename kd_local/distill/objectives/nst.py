"""Neuron selectivity transfer: the student's channels should respond at the same positions as the teacher's."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import unit_vectors, widened
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.stages import at_smaller_resolution, pair_stages
from kd_local.networks import Variables
from kd_local.ranges import Weight
from kd_local.shapes import check_arrays


def nst_loss(student: Float[Array, "batch hs ws cs"], teacher: Float[Array, "batch ht wt ct"]) -> Float[Array, ""]:
    """The squared maximum mean discrepancy of the channels' maps with the kernel (x^T y)^2; the mean over the batch.

    Each map is scaled to a unit vector. Features of the larger resolution are first average-pooled to the smaller one.

    Reference: Huang and Wang, "Like what you like: knowledge distill via neuron selectivity transfer" (arXiv
    1707.01219), eqs. 3 and 7.

    Raises:
        ValueError: the features differ in images or shape, or are no maps.
    """

    def maps(features: Array) -> Array:
        batch, height, width, channels = features.shape
        return unit_vectors(features.transpose(0, 3, 1, 2).reshape(batch, channels, height * width))

    def kernel(a: Array, b: Array) -> Array:
        return jnp.square(jnp.einsum("nix,njx->nij", a, b, precision=jax.lax.Precision.HIGHEST)).mean()

    check_arrays(student=(student, "float batch hs ws cs"), teacher=(teacher, "float batch ht wt ct"))
    student, teacher = at_smaller_resolution(*widened(student, teacher))
    s, t = maps(student), maps(teacher)
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


@dataclass(frozen=True)
class NST(Objective):
    """ce_weight * cross entropy + weight * the sum of `nst_loss` over all stages except the stem.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of the sum, 0 or larger.

    Reference: Huang and Wang (arXiv 1707.01219). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 50.0

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        pair_stages(batch.student, batch.teacher)
        return super().init(rng, batch, examples=examples)

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        student, teacher = batch.student, batch.teacher
        each = [nst_loss(student.features[s], teacher.features[t]) for s, t in pair_stages(student, teacher)]
        return with_labels(batch, jnp.stack(each).sum(), ce_weight=self.ce_weight, weight=self.weight)
