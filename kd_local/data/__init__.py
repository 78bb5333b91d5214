"""Labelled images: sources, augmentation, and the order of batches."""

from kd_local.data.arrays import from_arrays
from kd_local.data.augmentation import Augmentation, augment, augment_strongly, normalise
from kd_local.data.batches import batches
from kd_local.data.digests import content_digest, file_digest, files_digest
from kd_local.data.order import batch_indices, epoch_order, indices_at, steps_per_epoch
from kd_local.data.prepared import DataError
from kd_local.data.randaugment import RandAugment, randaugment
from kd_local.data.registry import DatasetSpec
from kd_local.data.sources import describe, load, training_labels
from kd_local.data.splits import WHOLE, Data, Examples, HostShare, Split
from kd_local.data.streamed import StreamedSplit

__all__ = [
    "WHOLE",
    "Augmentation",
    "Data",
    "DataError",
    "DatasetSpec",
    "Examples",
    "HostShare",
    "RandAugment",
    "Split",
    "StreamedSplit",
    "augment",
    "augment_strongly",
    "batch_indices",
    "batches",
    "content_digest",
    "describe",
    "epoch_order",
    "file_digest",
    "files_digest",
    "from_arrays",
    "indices_at",
    "load",
    "normalise",
    "randaugment",
    "steps_per_epoch",
    "training_labels",
]
