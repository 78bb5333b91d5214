"""Overhaul of feature distillation: a partial distance between pre-activations, with a margin for negative ones."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.distill.connector import Connector, apply_connectors, init_connectors
from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import widened
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.stages import at_smaller_resolution, pair_stages
from kd_local.networks import Variables
from kd_local.ranges import Weight
from kd_local.shapes import check_arrays


def margins(preactivations: Float[Array, "batch h w c"]) -> Float[Array, " c"]:
    """The mean of each channel's negative values; 0 for a channel without negative values.

    Reference: Heo et al., "A comprehensive overhaul of feature distillation" (ICCV 2019), eq. 3, for this batch. Their
    code computes the expectation from the parameters of the preceding batch normalisation.
    """
    check_arrays(preactivations=(preactivations, "float batch h w c"))
    (x,) = widened(preactivations)
    x = x.reshape(-1, x.shape[-1])
    below = (x < 0).sum(axis=0).astype(x.dtype)
    return jnp.minimum(x, 0).sum(axis=0) / jnp.maximum(below, 1)


def ofd_loss(
    student: Float[Array, "batch h w c"], teacher: Float[Array, "batch h w c"], margin: Float[Array, " c"]
) -> Float[Array, ""]:
    """The sum of (s - max(t, m))^2 over all positions where t > 0 or s > max(t, m); the mean over the batch.

    The margin m of each channel is 0 or less.

    Reference: Heo et al. (ICCV 2019), eqs. 2 and 4.

    Raises:
        ValueError: the features differ in images or shape, or are no maps.
    """
    check_arrays(
        student=(student, "float batch h w c"), teacher=(teacher, "float batch h w c"), margin=(margin, "float c")
    )
    student, teacher, margin = widened(student, teacher, margin)
    target = jnp.maximum(teacher, margin.reshape(1, 1, 1, -1))
    counted = (teacher > 0) | (student > target)
    return jnp.where(counted, jnp.square(student - target), 0).sum() / len(student)


@dataclass(frozen=True)
class OFD(Objective):
    """ce_weight * cross entropy + weight * the sum of `ofd_loss` / 2^(n - i) over the stages i = 1..n after the stem.

    The student's pre-activations go through a `Connector` without ReLU. Those of the larger resolution are
    average-pooled to the smaller one. The margins are those of the batch.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of the sum, 0 or larger.

    Reference: Heo et al. (ICCV 2019). Factors and defaults are those of the mdistiller code for CIFAR-100.

    Raises:
        ValueError: a negative weight.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 0.001

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        connectors, inputs, _ = self._connectors(batch)
        return init_connectors(connectors, rng, inputs)

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        connectors, inputs, targets = self._connectors(batch)
        outputs, batch_stats = apply_connectors(connectors, variables, inputs, train=True)
        each = []
        for i, (name, target) in enumerate(reversed(targets.items())):
            student, teacher = at_smaller_resolution(outputs[name], target)
            each.append(ofd_loss(student, teacher, margins(target)) / 2**i)
        return with_labels(
            batch, jnp.stack(each).sum(), ce_weight=self.ce_weight, weight=self.weight, batch_stats=batch_stats
        )

    def _connectors(self, batch: EvaluationBatch) -> tuple[dict[str, Connector], dict[str, tuple[Any]], dict[str, Any]]:
        connectors, inputs, targets = {}, {}, {}
        for s, t in pair_stages(batch.student, batch.teacher):
            x, target = batch.student.preactivations[s], batch.teacher.preactivations[t]
            height, width = (min(x.shape[axis], target.shape[axis]) for axis in (1, 2))
            connectors[f"stage{s}"] = Connector((height, width, target.shape[3]), relu=False)
            inputs[f"stage{s}"], targets[f"stage{s}"] = (x,), target
        return connectors, inputs, targets
