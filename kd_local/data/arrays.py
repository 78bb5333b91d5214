"""Makes data sets from arrays."""

import math

import numpy as np
from jaxtyping import Int64, UInt8

from kd_local.data.augmentation import Augmentation, check_shape
from kd_local.data.pixels import eight_bits
from kd_local.data.splits import Data, Split, check_limits, choose_examples


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray] | None,
    *,
    classes: int | None = None,
    augmentation: Augmentation | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
    test_examples: int = 0,
    name: str = "arrays",
) -> Data:
    """Data from arrays of images `[n, h, w, c]` and integer labels `[n]`.

    Images are uint8, or uint16 from 0 to 65535, which is scaled to 8 bits: x / 257, rounded.

    Args:
        train: images and labels.
        test: images and labels, with the same `h`, `w` and `c`; None with `test_examples`.
        classes: number of classes; by default the largest label plus 1.
        augmentation: by default no crops or flips, with the mean and standard deviation of the training images.
        train_examples: see `load`.
        validation_examples: see `load`.
        test_examples: see `load`.
        name: name for messages and records.

    Raises:
        ValueError: arrays or limits that do not match this description.
    """
    if (test is None) != (test_examples > 0):
        raise ValueError(
            f"test_examples is {test_examples} and test is {'not ' if test is None else ''}given: give the images for "
            "testing, or test=None and the number of training images to hold out"
        )
    whole = _checked("train", *train)
    given = None if test is None else _checked("test", *test)
    shape = whole.images.shape[1:]
    if given is not None and shape != given.images.shape[1:]:
        raise ValueError(
            f"train images are {shape}, but test images are {given.images.shape[1:]}: resize or crop one of them"
        )
    largest = int(max(split.labels.max() for split in (whole, given) if split is not None))
    if classes is None:
        classes = largest + 1
    if classes <= largest:
        raise ValueError(
            f"label {largest} with {classes} classes: labels are 0 to {classes - 1}; give classes={largest + 1} or more"
        )
    check_limits(len(whole), train_examples, validation_examples, test_examples)
    if augmentation is not None:
        check_shape(augmentation, shape)

    train_split, test_split, validation = whole, given, None
    if train_examples is not None or validation_examples or test_split is None:
        choice = choose_examples(whole.labels, train_examples, validation_examples, test_examples)
        train_split = _part(whole, choice.train)
        validation = _part(whole, choice.validation) if validation_examples else None
        test_split = test_split or _part(whole, choice.test)
    return Data(
        name=name,
        train=train_split,
        test=test_split,
        validation=validation,
        classes=classes,
        augmentation=augmentation or _normalising(train_split.images),
    )


def _part(split: Split, chosen: Int64[np.ndarray, " n"]) -> Split:
    return Split(split.images[chosen], split.labels[chosen])


def _checked(which: str, images: np.ndarray, labels: np.ndarray) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype == np.uint16 and images.size:
        if images.max() <= 255:
            raise ValueError(
                f"{which} images are uint16 and none is above {images.max()}: if they are from 0 to 255, use "
                "images.astype('uint8')"
            )
        images = eight_bits(images)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{which} labels are {labels.dtype}: use whole numbers, labels.astype('int32')")
    if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.int32).max):
        raise ValueError(f"{which} labels are from {labels.min()} to {labels.max()}: use 0 to classes - 1")
    try:
        split = Split(images, labels.astype(np.int32))
    except ValueError as error:
        raise ValueError(f"{which} {error}") from None
    if not images.size:
        raise ValueError(f"{which} images have shape {images.shape}: give at least one example")
    return split


def _normalising(images: UInt8[np.ndarray, "n h w c"]) -> Augmentation:
    # Integer sums are exact, and need no copy of the images as floats.
    pixels = images[..., 0].size
    sums = np.einsum("nhwc->c", images, dtype=np.int64).tolist()
    squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64).tolist()
    mean = [total / pixels for total in sums]
    std = [math.sqrt(pixels * square - total**2) / pixels for total, square in zip(sums, squares, strict=True)]
    # A constant channel is shifted but not scaled.
    return Augmentation(mean=tuple(mean), std=tuple(deviation or 1.0 for deviation in std))
