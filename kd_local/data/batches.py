"""Batches of a split, for use without the training loop."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32, UInt8

from kd_local.data.splits import Examples
from kd_local.errors import check_type

NumberedBatch = tuple[int, UInt8[np.ndarray, "batch h w c"], Int32[np.ndarray, " batch"]]
"""The step, images and labels."""


def batches(split: Examples, *, seed: int, batch_size: int, start_step: int = 0) -> Iterator[NumberedBatch]:
    """Yields `(step, images, labels)` for each step from `start_step` on, without end. Depends only on seed and step.

    >>> from kd_local.data import load
    >>> step, images, labels = next(batches(load("digits").train, seed=0, batch_size=64))
    >>> step, images.shape, images.dtype.name
    (0, (64, 8, 8, 1), 'uint8')

    Raises:
        ValueError: `split` is no split; see also `batch_indices`. Raised by the call, not by the first batch.
    """
    check_type("split", split, Examples, "use a split of data, such as data.train")
    steps = split.training_batches(seed=seed, batch_size=batch_size, start_step=start_step)
    return ((step, images, labels) for step, _, images, labels in steps)
