"""Losses of objectives that compare student and teacher on two views of each image."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.objective import ObjectiveLoss, StrongView, TrainingBatch


def strong_view(batch: TrainingBatch) -> StrongView:
    """The outputs for the strong view of a batch.

    Raises:
        ValueError: the batch has one view.
    """
    if batch.strong is None:
        raise ValueError("the batch has no strong view: set needs_strong_view in the class of the objective")
    return batch.strong


def with_labels_of_both(
    batch: TrainingBatch, terms: Mapping[str, Float[Array, ""]], *, ce_weight: float, weights: Mapping[str, float]
) -> ObjectiveLoss:
    """ce_weight * (cross entropy of the weak view + that of the strong view) + the weighted sum of other terms.

    The metrics contain the terms, unweighted.
    """
    weak = batch.task_loss(batch.student.logits, batch.labels)["loss"]
    strong = batch.task_loss(strong_view(batch).student.logits, batch.labels)["loss"]
    return ObjectiveLoss(
        task=ce_weight * (weak + strong),
        distillation=jnp.stack([jnp.asarray(weights[name], term.dtype) * term for name, term in terms.items()]).sum(),
        metrics={"cross_entropy": weak, "cross_entropy_strong": strong, **terms},
        batch_stats={},
    )
