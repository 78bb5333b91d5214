"""Sources of labelled images, their augmentation, and the order in which they come."""

from kd_local.data.augmentation import Augmentation, augment, normalise
from kd_local.data.batches import (
    batch_at,
    batch_indices,
    batches,
    epoch_order,
    evaluation_batches,
    steps_per_epoch,
)
from kd_local.data.sources import Description, describe, from_arrays, load
from kd_local.data.splits import Data, Split

__all__ = [
    "Augmentation",
    "Data",
    "Description",
    "Split",
    "augment",
    "batch_at",
    "batch_indices",
    "batches",
    "describe",
    "epoch_order",
    "evaluation_batches",
    "from_arrays",
    "load",
    "normalise",
    "steps_per_epoch",
]
