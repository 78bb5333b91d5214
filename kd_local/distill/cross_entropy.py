"""Adds the cross entropy of the labels to a distillation term."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.objective import ObjectiveLoss, TrainingBatch
from kd_local.networks import Collection


def with_labels(
    batch: TrainingBatch,
    distillation: Float[Array, ""],
    *,
    ce_weight: float,
    weight: float | Float[Array, ""] = 1.0,
    logits: Float[Array, "batch classes"] | None = None,
    batch_stats: Collection | None = None,
) -> ObjectiveLoss:
    """The result of `Objective.loss` for the loss ce_weight * cross entropy + weight * distillation.

    The metrics contain the two terms, unweighted. The cross entropy is that of `logits`, by default the student's.
    """
    cross_entropy = batch.task_loss(batch.student.logits if logits is None else logits, batch.labels)["loss"]
    return ObjectiveLoss(
        task=ce_weight * cross_entropy,
        distillation=jnp.asarray(weight, distillation.dtype) * distillation,
        metrics={"cross_entropy": cross_entropy, "distillation": distillation},
        batch_stats=batch_stats or {},
    )
