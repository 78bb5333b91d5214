"""Labelled images of differing sizes that are not held in memory: read, decoded and cropped in worker processes.

The workers are those of grain. An element of its pipeline is the batch of one step, and what is in it follows from
seed and step alone, as with images in memory: the order of an epoch from (seed, epoch), the crop of an example from
(seed, epoch, its place in the split). So the step that a checkpoint holds is all the state that the pipeline has. A run
that goes on from it, in the middle of an epoch, with however many workers, is given the very next batch, without
reading one before it.

Flips and normalisation are done on the device (`Augmentation`).
"""

import atexit
import importlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import jax
import numpy as np
from absl import flags
from jaxtyping import Float64, Int32, Int64, UInt8

from kd_local.data.crops import ATTEMPTS, central_crop, random_crop
from kd_local.data.order import NumberedIndices, batch_indices, evaluation_steps, indices_at, steps_per_epoch
from kd_local.data.prepared import DataError, PreparedSplit
from kd_local.data.splits import WHOLE, HostShare, PaddedBatch, TrainingBatch

Decoded = tuple[UInt8[np.ndarray, "rows size size 3"], Int32[np.ndarray, " rows"]]
"""Images and labels of a process's rows of a batch."""


class StreamedSplit:
    """A split of a prepared data set, or some examples of it: `Examples` that are read as they are needed.

    In training, an image is a random part of the one in the record, in evaluation its central part; see `random_crop`
    and `central_crop`. Grey and CMYK images become RGB.

    Args:
        prepared: the split. With workers, each opens its files anew.
        image_size: of the square images, in pixels.
        workers: the processes that decode. With 0, this process does, when a batch is asked for. Each has up to three
            batches under way, in shared memory: what was made, what is handed on and what is waited for.
        chosen: the records that the split has, by default all, in order.

    Raises:
        ValueError: an image size below 1, or a negative number of workers.
        ModuleNotFoundError: grain is not installed.
    """

    def __init__(
        self,
        prepared: PreparedSplit,
        *,
        image_size: int,
        workers: int,
        chosen: Int64[np.ndarray, " n"] | None = None,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size {image_size}: use 1 or more pixels, as 224")
        if workers < 0:
            raise ValueError(f"workers {workers}: use 1 or more processes, or 0 to decode in this one")
        _grain()
        self._records = _Records(prepared, chosen, image_size)
        self._workers = workers

    def __len__(self) -> int:
        return len(self._records)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images, as batches give them."""
        return self._records.size, self._records.size, 3

    def training_batches(
        self, *, seed: int, batch_size: int, start_step: int = 0, share: HostShare = WHOLE
    ) -> Generator[TrainingBatch, None, None]:
        """See `Examples`. The workers start at once; they end with `close()`, an error, or the generator.

        Raises:
            ValueError: see `batch_indices`, at once; with a batch, a record that cannot be read or decoded, naming it.
            DataError: with a batch, a worker was ended from outside.
        """
        steps = batch_indices(len(self), seed=seed, batch_size=batch_size, start_step=start_step)
        source = _TrainingBatches(self._records, share, seed, batch_size)
        return _numbered(steps, _Stream(source, start_step, self._workers))

    def evaluation_batches(self, batch_size: int, share: HostShare = WHOLE) -> Generator[PaddedBatch, None, None]:
        """See `Examples` and `training_batches`.

        Raises:
            ValueError: as `training_batches`.
        """
        steps = evaluation_steps(len(self), batch_size)
        stream = _Stream(_EvaluationBatches(self._records, share, batch_size), 0, min(self._workers, steps))
        return _padded(len(self), steps, batch_size, share, stream)


def _numbered(steps: Iterator[NumberedIndices], stream: "_Stream") -> Generator[TrainingBatch, None, None]:
    try:
        for step, chosen in steps:
            images, labels = stream.take()
            yield step, chosen, images, labels
    finally:
        stream.close()


def _padded(
    examples: int, steps: int, batch_size: int, share: HostShare, stream: "_Stream"
) -> Generator[PaddedBatch, None, None]:
    try:
        for step in range(steps):
            images, labels = stream.take()
            rows = share.evaluation_rows(step, batch_size)
            yield images, labels, np.arange(rows.start, rows.stop) < examples
    finally:
        stream.close()


@dataclass(frozen=True, eq=False)
class _Records:
    """What is read, and how large it becomes."""

    prepared: PreparedSplit
    chosen: Int64[np.ndarray, " n"] | None
    size: int

    def __len__(self) -> int:
        return len(self.prepared if self.chosen is None else self.chosen)

    def batch(self, places: Int64[np.ndarray, " n"], rows: int, crop: Callable[[bytes, int], np.ndarray]) -> Decoded:
        """The examples at these places of the split, as `crop(encoded, place)` gives their images; further rows are
        black and of label 0."""
        images = np.zeros((rows, self.size, self.size, 3), np.uint8)
        labels = np.zeros(rows, np.int32)
        records = places if self.chosen is None else self.chosen[places]
        for row, (record, encoded, label) in enumerate(self.prepared.encoded(records.tolist())):
            labels[row] = label
            try:
                images[row] = crop(encoded, int(places[row]))
            except Exception as error:
                raise self.prepared.damaged(record, f"its image does not decode: {error}") from error
        return images, labels


@dataclass(frozen=True, eq=False)
class _TrainingBatches:
    """Batches by step: what grain calls a data source with random access."""

    records: _Records
    share: HostShare
    seed: int
    batch_size: int

    def __len__(self) -> int:
        return sys.maxsize  # endless

    def __getitem__(self, step: int) -> Decoded:
        size = self.records.size
        epoch = step // steps_per_epoch(len(self.records), self.batch_size)
        places = indices_at(len(self.records), seed=self.seed, batch_size=self.batch_size, step=step)
        mine = places[self.share.rows(len(places))]
        return self.records.batch(
            mine, len(mine), lambda encoded, place: random_crop(encoded, size, crop_numbers(self.seed, epoch, place))
        )


@dataclass(frozen=True, eq=False)
class _EvaluationBatches:
    """The same, of evaluation."""

    records: _Records
    share: HostShare
    batch_size: int

    def __len__(self) -> int:
        return evaluation_steps(len(self.records), self.batch_size)

    def __getitem__(self, step: int) -> Decoded:
        size = self.records.size
        rows = self.share.evaluation_rows(step, self.batch_size)
        present = np.arange(rows.start, min(rows.stop, len(self.records)))
        return self.records.batch(present, len(rows), lambda encoded, _: central_crop(encoded, size))


def crop_numbers(seed: int, epoch: int, place: int) -> Float64[np.ndarray, "attempts 4"]:
    """What `random_crop` draws for the example at a place of the split, in an epoch.

    They are outputs of Philox 4x64 with the key (seed, epoch), from the counter (0, 0, place, 1) on: none of those that
    `epoch_order` takes.
    """
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, place, 1], np.uint64))
    # As many bits as the fraction of a float64 has.
    return ((philox.random_raw(ATTEMPTS * 4) >> np.uint64(11)) * 2.0**-53).reshape(ATTEMPTS, 4)


class _Stream:
    """The batches of a source in order, from a step on; those of the next steps are made meanwhile by the workers."""

    def __init__(self, source: _TrainingBatches | _EvaluationBatches, start: int, workers: int) -> None:
        grain = _grain()
        if workers and source.records.chosen is not None:
            # One copy for all of them. What a process is started with must also be little: if a worker is killed
            # before it has read that, whoever waits to write the rest of it to the worker waits forever.
            records = replace(source.records, chosen=_shared(source.records.chosen))
            source = replace(source, records=records)
        at_once = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        batches = grain.MapDataset.source(source)[start:].to_iter_dataset(at_once)
        if workers:
            options = grain.MultiprocessingOptions(num_workers=workers)
            batches = batches.mp_prefetch(options, worker_init_fn=_set_up_worker)
        self._iterator = iter(batches)
        if workers:
            _OPEN.add(self)
            self._start_workers()

    def _start_workers(self) -> None:
        # What threads and processes inherit: Ctrl-C reaches all processes of a terminal, but it is for the main one to
        # decide what becomes of the run.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # All workers are known to the iterator from here on, so that it can end them at any time; of those that
            # it only starts with the first batch it forgets some if it is closed too early.
            self._iterator.get_state()
            self._iterator.start_prefetch()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def take(self) -> Decoded:
        try:
            images, labels = next(self._iterator)
        except RuntimeError as error:
            if (code := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))) is None:
                raise
            raise DataError(f"a worker process that decodes images ended: {_cause(int(code[1]))}") from error
        # Of one's own, so that nobody who keeps a batch keeps shared memory, of which there is little.
        return np.array(images), np.array(labels)

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
        # Closing it once more, as it is let go of, would be too late at the end of a program.
        self._iterator = None


_OPEN: WeakSet[_Stream] = WeakSet()


# At the end of a program workers must end before multiprocessing itself does: of functions to be called then the last
# that was registered is called first.
@atexit.register
def _close_all() -> None:
    for stream in list(_OPEN):
        stream.close()


def _shared(array: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """A copy in shared memory, which lasts as long as the copy."""
    copy = _grain().multiprocessing.SharedMemoryArray(array.shape, array.dtype)
    copy[:] = array
    copy.unlink_on_del()
    return copy


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "it was killed, as when memory runs out: use fewer workers or a smaller batch"
    if code == -signal.SIGBUS:
        return "/dev/shm, where the batches lie, is full: make it larger, or use fewer workers or a smaller batch"
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return (
        f"its exit status is {code}, and its own message stands above; a program of your own needs "
        "if __name__ == '__main__': around what it does, as each worker imports it"
    )


def _set_up_worker(index: int, count: int) -> None:
    """What a worker does before all else."""
    # It has been imported, by grain itself; a worker must not take the accelerator, or memory of it.
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_PLATFORMS"] = "cpu"
    # A main process that is killed can end nobody.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _grain() -> Any:
    if importlib.util.find_spec("grain") is None:
        raise ModuleNotFoundError(
            "images that are not held in memory are read through grain: pip install grain, or "
            "pip install 'kd_local[imagenet]'"
        )
    grain = importlib.import_module("grain")
    if not flags.FLAGS.is_parsed():
        # It reads flags of its own, which outside of a program with flags, as in a notebook, nobody parses.
        for name in flags.FLAGS:
            if name.startswith("grain_"):
                flags.FLAGS[name].present = 1
    return grain
