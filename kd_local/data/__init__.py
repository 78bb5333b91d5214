"""Sources of labelled images, their augmentation, and the order in which they come."""

from kd_local.data.augmentation import Augmentation, augment, normalise
from kd_local.data.batches import batch_at, batches
from kd_local.data.order import batch_indices, epoch_order, steps_per_epoch
from kd_local.data.prepared import DataError
from kd_local.data.sources import Description, describe, from_arrays, load
from kd_local.data.splits import WHOLE, Data, Examples, Share, Split
from kd_local.data.streamed import StreamedSplit

__all__ = [
    "WHOLE",
    "Augmentation",
    "Data",
    "DataError",
    "Description",
    "Examples",
    "Share",
    "Split",
    "StreamedSplit",
    "augment",
    "batch_at",
    "batch_indices",
    "batches",
    "describe",
    "epoch_order",
    "from_arrays",
    "load",
    "normalise",
    "steps_per_epoch",
]
