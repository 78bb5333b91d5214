"""Data sets and their splits, the batches of a split, and the choice of training, validation and test examples.

The choice is fixed: it does not depend on the seed of a training run.
"""

import operator
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8

from kd_local.data.augmentation import Augmentation
from kd_local.data.order import NumberedIndices, batch_indices, evaluation_steps
from kd_local.data.pixels import check_channels_last

TrainingBatch = tuple[int, Int64[np.ndarray, " batch"], UInt8[np.ndarray, "rows h w c"], Int32[np.ndarray, " rows"]]
"""The step, the indices of the whole batch in the training split, and the images and labels of this process's rows."""

PaddedBatch = tuple[UInt8[np.ndarray, "rows h w c"], Int32[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]
"""Images, labels and mask of this process's rows; the mask is False for padding."""


@dataclass(frozen=True)
class HostShare:
    """The share of each batch that one of several processes loads.

    Attributes:
        process, processes: index of the process, from 0, and number of processes.
        devices: number of devices, of all processes together, over which a batch is divided.

    Raises:
        ValueError: `process` is not below `processes`, or there are no devices.
    """

    process: int = 0
    processes: int = 1
    devices: int = 1

    def __post_init__(self) -> None:
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise ValueError(
                f"process {self.process} of {self.processes}: use 1 or more processes, and an index from 0 to "
                "processes - 1"
            )
        if self.devices < 1:
            raise ValueError(f"a batch is divided over {self.devices} devices: use 1 or more")

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch: all rows if `devices` does not divide the batch.

        In this case every device computes the whole batch.
        """
        if batch % self.devices:
            return slice(0, batch)
        return slice(batch * self.process // self.processes, batch * (self.process + 1) // self.processes)

    def evaluation_rows(self, step: int, batch_size: int) -> range:
        """This process's rows of an evaluation batch, as indices in the split. The last batch extends past its end."""
        rows = self.rows(batch_size)
        return range(step * batch_size + rows.start, step * batch_size + rows.stop)


WHOLE = HostShare()


@runtime_checkable
class Examples(Protocol):
    """A split of labelled images, in memory or streamed.

    The batches of a streamed split come from worker processes, which the call starts. A caller that does not read a
    generator to its end must close it.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images in a batch."""
        ...

    def __len__(self) -> int: ...

    def training_batches(
        self, *, seed: int, batch_size: int, start_step: int = 0, share: HostShare = WHOLE
    ) -> Generator[TrainingBatch, None, None]:
        """Yields a batch for each step from `start_step` on, without end; see `batch_indices`.

        Raises:
            ValueError: see `batch_indices`. Raised by the call, not by the first batch.
        """
        ...

    def evaluation_batches(self, batch_size: int, share: HostShare = WHOLE) -> Generator[PaddedBatch, None, None]:
        """Yields all examples once, in order, in batches of equal size.

        The last batch is padded with black images of label 0, whose mask is False.

        Raises:
            ValueError: a batch size below 1. Raised by the call, not by the first batch.
        """
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory, with pixels from 0 to 255. It implements `Examples`.

    Raises:
        ValueError: images or labels of another shape or dtype, or different numbers of them.
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise ValueError(f"images have shape {self.images.shape}: use [n, h, w, c], with c = 1 for grey images")
        check_channels_last(self.images.shape)
        if self.images.dtype != np.uint8:
            raise ValueError(f"images are {self.images.dtype}: use uint8 from 0 to 255; normalisation comes later")
        if self.labels.ndim != 1:
            raise ValueError(
                f"labels have shape {self.labels.shape}: use [n], for one-hot labels labels.argmax(axis=1)"
            )
        if self.labels.dtype != np.int32:
            raise ValueError(f"labels are {self.labels.dtype}: use int32, labels.astype('int32')")
        if len(self.images) != len(self.labels):
            raise ValueError(f"images and labels are {len(self.images)} and {len(self.labels)}: give equal numbers")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def training_batches(
        self, *, seed: int, batch_size: int, start_step: int = 0, share: HostShare = WHOLE
    ) -> Generator[TrainingBatch, None, None]:
        """See `Examples`."""
        steps = batch_indices(len(self), seed=seed, batch_size=batch_size, start_step=start_step)
        return self._training_batches(steps, share)

    def _training_batches(
        self, steps: Iterator[NumberedIndices], share: HostShare
    ) -> Generator[TrainingBatch, None, None]:
        for step, chosen in steps:
            mine = chosen[share.rows(len(chosen))]
            yield step, chosen, self.images[mine], self.labels[mine]

    def evaluation_batches(self, batch_size: int, share: HostShare = WHOLE) -> Generator[PaddedBatch, None, None]:
        """See `Examples`."""
        return self._evaluation_batches(evaluation_steps(len(self), batch_size), batch_size, share)

    def _evaluation_batches(self, steps: int, batch_size: int, share: HostShare) -> Generator[PaddedBatch, None, None]:
        for step in range(steps):
            rows = share.evaluation_rows(step, batch_size)
            images, labels = self.images[rows.start : rows.stop], self.labels[rows.start : rows.stop]
            missing = len(rows) - len(labels)
            if missing:
                images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
                labels = np.pad(labels, (0, missing))
            yield images, labels, np.arange(rows.start, rows.stop) < len(self)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: its training, test and optional validation split.

    Labels are from 0 to `classes - 1`. `augmentation` is the usual augmentation for training.
    """

    name: str
    train: Examples
    test: Examples
    validation: Examples | None
    classes: int
    augmentation: Augmentation


def check_limits(available: int, train_examples: int | None, validation_examples: int, test_examples: int = 0) -> None:
    """Checks the numbers of training, validation and test examples that are taken from a training split.

    Raises:
        ValueError: a number is negative, all together exceed `available`, or no training example is left.
    """
    tested, held_out = operator.index(test_examples), operator.index(validation_examples)
    if not 0 <= tested <= max(available - 2, 0):
        raise ValueError(
            f"test_examples {tested} of {available} training examples: use 0 (the data set's own test split) to "
            f"{available - 2}"
        )
    if not 0 <= held_out <= max(available - tested - 2, 0):
        raise ValueError(
            f"validation_examples {held_out} of {_left(available, {'testing': tested})}: use 0 (no validation split) "
            f"to {available - tested - 2}"
        )
    if train_examples is None:
        return
    limit, left = operator.index(train_examples), available - held_out - tested
    if not 2 <= limit <= left:
        raise ValueError(
            f"train_examples {limit} of {_left(available, {'testing': tested, 'validation': held_out})}: use 2 to "
            f"{left}, or None for all of them"
        )


def _left(available: int, taken: Mapping[str, int]) -> str:
    """A text such as `40 training examples (50 minus 10 for validation)`."""
    parts = " and ".join(f"{number} for {purpose}" for purpose, number in taken.items() if number)
    left = available - sum(taken.values())
    return f"{left} training examples" + (f" ({available} minus {parts})" if parts else "")


class Choice(NamedTuple):
    """Indices of training, validation and test examples in one split, each in rising order and without overlap."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    test: Int64[np.ndarray, " test"]


def choose_examples(
    labels: Int32[np.ndarray, " n"], train_examples: int | None, validation_examples: int, test_examples: int = 0
) -> Choice:
    """Chooses training, validation and test examples of a split by their labels.

    Each choice has the class proportions of `labels`, up to one or two examples of each class. A larger choice
    contains every smaller one. The test examples depend only on their number; the validation examples depend also on
    the number of test examples. The numbers must pass `check_limits`.
    """
    # Each class is spread evenly over 0 to 1, in a fixed random order. In the order of these places, any sequence of
    # consecutive examples has the class proportions of the whole.
    random = np.argsort(np.random.Philox(key=0).random_raw(len(labels)), kind="stable")
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = random[labels[random] == label]
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((labels, places)).astype(np.int64)
    held_out = test_examples + validation_examples
    end = None if train_examples is None else held_out + train_examples
    return Choice(
        train=np.sort(order[held_out:end]),
        validation=np.sort(order[test_examples:held_out]),
        test=np.sort(order[:test_examples]),
    )
