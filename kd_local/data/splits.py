"""What a data set is, and which examples of its training split are trained on or held out.

That choice is fixed: no seed of a training run changes it.
"""

import operator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from kd_local.data.augmentation import Augmentation


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory, from 0 to 255."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: what is trained on, tested on and, if asked for, held out for validation.

    Labels are from 0 to `classes - 1`. `augmentation` is what the data set is usually trained with.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None
    classes: int
    augmentation: Augmentation


def check_limits(available: int, train_examples: int | None, validation_examples: int) -> None:
    """Whether so many examples can be trained on and held out.

    Raises:
        ValueError: they are more than `available`, or fewer than makes sense.
    """
    held_out = operator.index(validation_examples)
    if not 0 <= held_out < available:
        raise ValueError(
            f"validation_examples {held_out} of {available} training examples: use 0 (no "
            f"validation split) to {available - 1}"
        )
    if train_examples is None:
        return
    limit, left = operator.index(train_examples), available - held_out
    if not 1 <= limit <= left:
        raise ValueError(
            f"train_examples {limit} of {left} training examples ({available} less {held_out} for "
            f"validation): use 1 to {left}, or None for all of them"
        )


def parts(
    labels: Int32[np.ndarray, " n"], train_examples: int | None, validation_examples: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]]:
    """Indices of what is trained on and of what is held out, both rising.

    Both hold the classes in the proportions of `labels`, up to one example a class or two, and a
    smaller part is contained in a larger one. The limits are as `check_limits` allows them.
    """
    # Each class, in a fixed random order, is spread evenly over 0 to 1. In the order of these
    # places any stretch of examples has the classes in the proportions of the whole.
    random = np.argsort(np.random.Philox(key=0).random_raw(len(labels)), kind="stable")
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = random[labels[random] == label]
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((labels, places)).astype(np.int64)
    end = None if train_examples is None else validation_examples + train_examples
    return np.sort(order[validation_examples:end]), np.sort(order[:validation_examples])
