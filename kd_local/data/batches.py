"""Batches whose order and content depend on seed and step alone.

So training can go on from any step, without a state of its own to keep.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32, UInt8

from kd_local.data.splits import Examples

Batch = tuple[UInt8[np.ndarray, "batch h w c"], Int32[np.ndarray, " batch"]]
"""Images and labels."""

NumberedBatch = tuple[int, UInt8[np.ndarray, "batch h w c"], Int32[np.ndarray, " batch"]]
"""The step, images and labels."""


def batch_at(split: Examples, *, seed: int, step: int, batch_size: int) -> Batch:
    """Images and labels of a training step, counted from 0 over all epochs.

    Raises:
        ValueError: see `steps_per_epoch` and `epoch_order`; a negative step.
    """
    stream = batches(split, seed=seed, batch_size=batch_size, start_step=step)
    _, images, labels = next(stream)
    return images, labels


def batches(split: Examples, *, seed: int, batch_size: int, start_step: int = 0) -> Iterator[NumberedBatch]:
    """Endless steps from `start_step` on, each with its images and labels: what `batch_at` gives.

    Raises:
        ValueError: see `batch_at`; at once, not with the first batch.
    """
    steps = split.training_batches(seed=seed, batch_size=batch_size, start_step=start_step)
    return ((step, images, labels) for step, _, images, labels in steps)
