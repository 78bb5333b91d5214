"""Streams labelled images of any size: worker processes read, decode and crop them.

The library grain runs the workers. An element of its pipeline is the batch of one step. As with images in memory, a
batch depends only on seed and step: the order of an epoch depends on (seed, epoch), and the crop of an example on
(seed, epoch, index in the split). Therefore the step in a checkpoint is the whole state of the pipeline. A run that
resumes in the middle of an epoch, with any number of workers, gets the next batch without reading earlier batches.

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
from multiprocessing import resource_tracker
from typing import Any
from weakref import WeakSet

import jax
import numpy as np
from absl import flags
from jaxtyping import Int32, Int64, UInt8

from kd_local.data.crops import central_crop, crop_numbers, random_crop
from kd_local.data.order import NumberedIndices, batch_indices, evaluation_steps, indices_at, steps_per_epoch
from kd_local.data.prepared import DataError, PreparedSplit
from kd_local.data.splits import WHOLE, HostShare, PaddedBatch, TrainingBatch

Decoded = tuple[UInt8[np.ndarray, "rows size size 3"], Int32[np.ndarray, " rows"]]
"""The images and labels of a process's rows of a batch."""


class StreamedSplit:
    """A split of a prepared data set, or some examples of it, read when they are needed. It implements `Examples`.

    In training an image is a random part of the stored image, see `random_crop`; in evaluation it is the central part,
    see `central_crop`. Grey and CMYK images become RGB, and 16 bits become 8.

    Args:
        prepared: the split. Each worker opens its files again.
        image_size: side of the square images in pixels.
        workers: number of processes that decode. With 0, this process decodes when a batch is requested. Each worker
            keeps up to three batches in shared memory. They are freed at the end; if this process is killed, a process
            of multiprocessing frees them. If all are killed at once, they stay: remove /dev/shm/psm_*.
        chosen: indices of the records to use, in order; by default all.
        random_crops: False for central parts in training too, the same in each epoch.

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
        random_crops: bool = True,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size {image_size}: use 1 or more pixels, such as 224")
        if workers < 0:
            raise ValueError(f"workers {workers}: use 1 or more processes, or 0 to decode in this one")
        _grain()
        self._records = _Records(prepared, chosen, image_size)
        self._workers, self._random_crops = workers, random_crops

    def __len__(self) -> int:
        return len(self._records)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images in a batch."""
        return self._records.size, self._records.size, 3

    def training_batches(
        self, *, seed: int, batch_size: int, start_step: int = 0, share: HostShare = WHOLE
    ) -> Generator[TrainingBatch, None, None]:
        """See `Examples`. The call starts the workers. They end at `close()`, at an error, or with the generator.

        Raises:
            ValueError: see `batch_indices`; raised by the call.
            DataError: a record cannot be read or decoded (the message names it), or a worker was killed; raised when a
                batch is requested.
        """
        steps = batch_indices(len(self), seed=seed, batch_size=batch_size, start_step=start_step)
        source = _TrainingBatches(self._records, share, seed, batch_size, self._random_crops)
        return _numbered(steps, _Stream(source, start_step, self._workers))

    def evaluation_batches(self, batch_size: int, share: HostShare = WHOLE) -> Generator[PaddedBatch, None, None]:
        """See `Examples` and `training_batches`.

        Raises:
            ValueError, DataError: see `training_batches`.
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
    """The chosen records of a split, with the size of the images to make."""

    prepared: PreparedSplit
    chosen: Int64[np.ndarray, " n"] | None
    size: int

    def __len__(self) -> int:
        return len(self.prepared if self.chosen is None else self.chosen)

    def batch(self, places: Int64[np.ndarray, " n"], rows: int, crop: Callable[[bytes, int], np.ndarray]) -> Decoded:
        """The examples at these places of the split, with images from `crop(encoded, place)`.

        Rows without an example are black and have label 0.
        """
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
    """Training batches by step: a grain data source with random access."""

    records: _Records
    share: HostShare
    seed: int
    batch_size: int
    random_crops: bool

    def __len__(self) -> int:
        return sys.maxsize  # endless

    def __getitem__(self, step: int) -> Decoded:
        size = self.records.size
        epoch = step // steps_per_epoch(len(self.records), self.batch_size)
        places = indices_at(len(self.records), seed=self.seed, batch_size=self.batch_size, step=step)
        mine = places[self.share.rows(len(places))]
        if not self.random_crops:
            return self.records.batch(mine, len(mine), lambda encoded, _: central_crop(encoded, size))
        return self.records.batch(
            mine, len(mine), lambda encoded, place: random_crop(encoded, size, crop_numbers(self.seed, epoch, place))
        )


@dataclass(frozen=True, eq=False)
class _EvaluationBatches:
    """Evaluation batches by step."""

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


class _Stream:
    """The batches of a source in order, from step `start` on. Workers prepare the next ones."""

    def __init__(self, source: _TrainingBatches | _EvaluationBatches, start: int, workers: int) -> None:
        grain = _grain()
        if workers:
            _start_tracker()
        self._shared = None
        if workers and source.records.chosen is not None:
            # One copy for all workers. It also keeps the data that start a worker small: if a worker were killed before
            # it had read large data, the process that writes them would wait forever.
            self._shared = _shared(source.records.chosen)
            source = replace(source, records=replace(source.records, chosen=self._shared))
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
        # Workers inherit the mask. Ctrl-C reaches all processes of a terminal, but only the main process may handle it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # Starts the workers now. If the iterator started them with the first batch and were closed too early, some
            # workers would not be stopped.
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
        # Copied, so that a caller that keeps the batch does not keep shared memory.
        return np.array(images), np.array(labels)

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            # Freed now, because its destructor would close it again, which is too late at the end of a program.
            self._iterator = None
            _wait_for_freed_memory()
        if self._shared is not None:
            # By name, since grain's objects refer to the array and to each other, and may live until the end.
            self._shared.shm.unlink()
            self._shared = None


def _start_tracker() -> None:
    """Starts the process that frees shared memory after the end, without its warning: a program that is killed leaves
    batches that no process has taken."""
    quiet = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(quiet)  # it is started with these
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


def _wait_for_freed_memory() -> None:
    """Waits until grain's thread has freed the batches that were dropped, which the end of a program would not."""
    pool = getattr(_grain().multiprocessing.SharedMemoryArray, "_del_thread_pool", None)
    if pool is not None:
        pool.apply(int)  # after all that wait


_OPEN: WeakSet[_Stream] = WeakSet()


# Workers must end before multiprocessing does. Functions run in reverse order of registration.
@atexit.register
def _close_all() -> None:
    for stream in list(_OPEN):
        stream.close()


def _shared(array: Int64[np.ndarray, " n"]) -> Any:
    """A copy in shared memory, a numpy array with the attribute `shm`."""
    copy = _grain().multiprocessing.SharedMemoryArray(array.shape, array.dtype)
    copy[:] = array
    return copy


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "it was killed, probably because memory ran out: use fewer workers or a smaller batch"
    if code == -signal.SIGBUS:
        return "/dev/shm, where the batches are, is full: enlarge it, or use fewer workers or a smaller batch"
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return (
        f"its exit status is {code}, and its message is above; your own program needs "
        "if __name__ == '__main__': around its code, because each worker imports it"
    )


def _set_up_worker(index: int, count: int) -> None:
    """Runs first in a worker."""
    # grain has imported JAX. A worker must not use the accelerator or its memory.
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_PLATFORMS"] = "cpu"
    # If the main process is killed, it cannot stop its workers.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _grain() -> Any:
    if importlib.util.find_spec("grain") is None:
        raise ModuleNotFoundError(
            "streaming images needs grain: pip install grain, or pip install 'kd_local[imagenet]'"
        )
    grain = importlib.import_module("grain")
    if not flags.FLAGS.is_parsed():
        # grain reads its own flags, which nothing parses in a notebook.
        for name in flags.FLAGS:
            if name.startswith("grain_"):
                flags.FLAGS[name].present = 1
    return grain
