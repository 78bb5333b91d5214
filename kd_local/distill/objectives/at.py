"""Attention transfer: the student's features should be large at the positions where the teacher's are large."""

from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import unit_vectors, widened
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.stages import at_smaller_resolution, pair_stages
from kd_local.networks import Variables
from kd_local.ranges import Number, Weight, Weighted
from kd_local.shapes import check_arrays

POWER = Number(1, 8, whole=True)


def attention_loss(
    student: Float[Array, "batch hs ws cs"], teacher: Float[Array, "batch ht wt ct"], *, power: int = 2
) -> Float[Array, ""]:
    """The mean squared difference of two attention maps: |features|^power, averaged over channels, as a unit vector.

    Features of the larger resolution are first average-pooled to the smaller one.

    Reference: Zagoruyko and Komodakis, "Paying more attention to attention" (ICLR 2017), eq. 2, with the mean of the
    squares as in the mdistiller code.

    Raises:
        ValueError: the features differ in images or are no maps, or the power is out of range.
    """

    def attention(features: Array) -> Array:
        mean = (jnp.abs(features) ** power).mean(axis=-1)
        return unit_vectors(mean.reshape(len(mean), -1))

    check_arrays(student=(student, "float batch hs ws cs"), teacher=(teacher, "float batch ht wt ct"))
    POWER.check("power", power)
    student, teacher = at_smaller_resolution(*widened(student, teacher))
    return jnp.square(attention(student) - attention(teacher)).mean()


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class AT(Objective):
    """ce_weight * cross entropy + weight * the sum of `attention_loss` over all stages except the stem.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of the sum, 0 or larger.
        power: exponent of the absolute features, 1 or more.

    Reference: Zagoruyko and Komodakis (ICLR 2017). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight, or a power below 1.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 1000.0
    power: Annotated[int, POWER, _TERM] = 2

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        pair_stages(batch.student, batch.teacher)
        return super().init(rng, batch, examples=examples)

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        student, teacher = batch.student, batch.teacher
        each = [
            attention_loss(student.features[s], teacher.features[t], power=self.power)
            for s, t in pair_stages(student, teacher)
        ]
        return with_labels(batch, jnp.stack(each).sum(), ce_weight=self.ce_weight, weight=self.weight)
