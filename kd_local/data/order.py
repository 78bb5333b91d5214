"""The order of training examples, which depends only on seed and step.

Therefore training can resume at any step, and needs only the step to find the next batch.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from kd_local.choices.steps import check_batch_size

NumberedIndices = tuple[int, Int64[np.ndarray, " batch"]]
"""The step and the indices of its examples in the training split."""

_SEEDS = 2**64


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int | np.integer) or not 0 <= seed < _SEEDS:
        raise ValueError(f"seed {seed}: use a whole number from 0 to 2**64 - 1")


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Number of batches in one pass over all examples. The last batch may be smaller.

    Raises:
        ValueError: a batch size below 1 or above the number of examples.
    """
    check_batch_size(examples, batch_size)
    return -(-examples // batch_size)


def epoch_order(seed: int, epoch: int, examples: int) -> Int64[np.ndarray, " examples"]:
    """The order of the examples in an epoch: a permutation of their indices.

    The indices are sorted by the first 64-bit outputs of Philox 4x64 with the key (seed, epoch). These outputs are the
    same in all versions of numpy; the results of its shuffling functions are not.

    Raises:
        ValueError: a seed outside 0 to 2**64 - 1, or a negative epoch.

    Reference:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    _check_seed(seed)
    if epoch < 0:
        raise ValueError(f"epoch {epoch}: use 0 or more; epochs count from 0")
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(examples)
    return np.argsort(bits, kind="stable").astype(np.int64)


_order = lru_cache(maxsize=1)(epoch_order)


def indices_at(examples: int, *, seed: int, batch_size: int, step: int) -> Int64[np.ndarray, " batch"]:
    """Indices of the examples in the batch of a step, as in `batch_indices`. Steps count from 0 over all epochs.

    The order of the last epoch is cached.
    """
    epoch, position = divmod(step, steps_per_epoch(examples, batch_size))
    return _order(seed, epoch, examples)[position * batch_size :][:batch_size]


def batch_indices(examples: int, *, seed: int, batch_size: int, start_step: int = 0) -> Iterator[NumberedIndices]:
    """Yields each step from `start_step` on, without end, with the indices of its examples in the training split.

    Raises:
        ValueError: see `steps_per_epoch` and `epoch_order`; or a negative step. Raised by the call, not by the first
            batch.
    """
    _check_seed(seed)
    if not isinstance(start_step, int | np.integer) or start_step < 0:
        raise ValueError(f"step {start_step}: use 0 or more; steps count from 0")
    epoch, position = divmod(start_step, steps_per_epoch(examples, batch_size))
    return _batch_indices(examples, seed, batch_size, start_step, epoch, position)


def _batch_indices(
    examples: int, seed: int, batch_size: int, step: int, epoch: int, position: int
) -> Iterator[NumberedIndices]:
    while True:
        order = epoch_order(seed, epoch, examples)
        for start in range(position * batch_size, examples, batch_size):
            yield step, order[start : start + batch_size]
            step += 1
        epoch, position = epoch + 1, 0


def evaluation_steps(examples: int, batch_size: int) -> int:
    """Number of batches of equal size in one pass over all examples. The last batch is padded.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: use 1 or more")
    return -(-examples // batch_size)
