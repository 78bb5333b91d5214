"""Loads data sets of labelled images: known data sets by name, other prepared data sets, or arrays.

Images are uint8. Small images of one shape are held in memory; others are read when they are needed. They are augmented
and normalised on the device.
"""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from kd_local.data import prepared
from kd_local.data.augmentation import Augmentation, check_shape
from kd_local.data.digits import read_digits
from kd_local.data.registry import INCLUDED, DatasetSpec, look_up
from kd_local.data.splits import Data, Examples, Split, check_limits, choose_examples
from kd_local.data.streamed import StreamedSplit

_MOST_WORKERS = 16


def describe(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
) -> DatasetSpec:
    """The specification of the data that `load` returns for these arguments. `train` is the size of its training split.

    No example is read. The numbers of examples are those of the folder, or the published ones for a known data set that
    is not prepared.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: see `load`.
    """
    spec = look_up(name, data_dir, image_size)
    check_limits(spec.train, train_examples, validation_examples)
    return replace(spec, train=spec.train - validation_examples if train_examples is None else train_examples)


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    workers: int | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
) -> Data:
    """A data set: `cifar10`, `cifar100`, `digits`, `imagenet2012`, `stl10`, `svhn_cropped`, or another prepared one.

    >>> digits = load("digits")
    >>> len(digits.train), digits.train.shape, digits.classes
    (1437, (8, 8, 1), 10)

    - STL-10 has only its labelled examples, and SVHN has no `extra`. ImageNet is tested on its validation split.
    - Any other name is a folder in `data_dir`, or `name/config`. It needs the features `image` and `label`, the split
      `train`, and one of the splits `test` and `validation`, which is used for testing.
    - Images of one shape of at most 128 pixels are held in memory. Their augmentation crops from a border of 1/8 of the
      image and does not flip. All other images are a `StreamedSplit` with the augmentation of ImageNet.
    - Training and validation examples have the class proportions of the training split, and the choice is always the
      same. To choose examples of a streamed split, all its labels are read, and therefore all its files.

    Args:
        name: name in tensorflow-datasets; `digits` is part of the package.
        data_dir: folder in which tensorflow-datasets prepared the data set; see `prepared.find`.
        image_size: size of the images of a `StreamedSplit` in pixels; by default 224.
        workers: number of processes of each iterator over a `StreamedSplit`; by default one per core, at most 16.
            Images in memory need none.
        train_examples: number of training examples; by default all that are not held out.
        validation_examples: number of examples of the training split to hold out; by default none.

    Raises:
        ValueError: an unknown name, a `data_dir` for `digits`, an `image_size` for images in memory, a number out of
            range, or prepared data that is damaged or does not match its name.
        FileNotFoundError: the data set, or one of its files, is missing.
        ModuleNotFoundError: a package that is needed to read the data set is missing.

    Reference:
        Augmentation of CIFAR-10, STL-10 and SVHN: code of the authors of ContSup (arXiv 2312.07636). CIFAR-100:
        mdistiller, the code of DKD (arXiv 2203.08679). ImageNet: Szegedy et al. (arXiv 1409.4842), section 6, with the
        means of torchvision's models.
    """
    if workers is not None and workers < 0:
        raise ValueError(f"workers {workers}: use 1 or more, 0 to decode in this process, or None for the default")
    spec = look_up(name, data_dir, image_size)
    check_limits(spec.train, train_examples, validation_examples)
    if name == INCLUDED:
        if data_dir is not None:
            raise ValueError(f"data_dir {str(data_dir)!r}: digits is part of the package, leave data_dir out")
        return from_arrays(
            read_digits("train"),
            read_digits("test"),
            name=name,
            classes=spec.classes,
            augmentation=spec.augmentation,
            train_examples=train_examples,
            validation_examples=validation_examples,
        )

    folder = prepared.find(name, data_dir)
    train, test = (prepared.PreparedSplit(folder, split) for split in ("train", spec.test_split))

    def split(source: prepared.PreparedSplit, chosen: Int64[np.ndarray, " n"] | None = None) -> Examples:
        if not spec.streamed:
            return Split(*source.examples(chosen))
        processes = _default_workers() if workers is None else workers
        return StreamedSplit(source, image_size=spec.shape[0], workers=processes, chosen=chosen)

    kept = held_out = None
    if train_examples is not None or validation_examples:
        kept, held_out = choose_examples(train.labels(), train_examples, validation_examples)
    return Data(
        name=name,
        train=split(train, kept),
        test=split(test),
        validation=split(train, held_out) if held_out is not None and held_out.size else None,
        classes=spec.classes,
        augmentation=spec.augmentation,
    )


def _default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    classes: int | None = None,
    augmentation: Augmentation | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
    name: str = "arrays",
) -> Data:
    """Data from arrays of images, uint8 `[n, h, w, c]`, and integer labels `[n]`.

    Args:
        train: images and labels.
        test: images and labels, with the same `h`, `w` and `c`.
        classes: number of classes; by default the largest label plus 1.
        augmentation: by default no crops or flips, with the mean and standard deviation of the training images.
        train_examples: see `load`.
        validation_examples: see `load`.
        name: name for messages and records.

    Raises:
        ValueError: arrays or limits that do not match this description.
    """
    train_split, test_split = _checked("train", *train), _checked("test", *test)
    shape, test_shape = train_split.images.shape[1:], test_split.images.shape[1:]
    if shape != test_shape:
        raise ValueError(f"train images are {shape}, but test images are {test_shape}: resize or crop one of them")
    largest = int(max(train_split.labels.max(), test_split.labels.max()))
    if classes is None:
        classes = largest + 1
    if classes <= largest:
        raise ValueError(
            f"label {largest} with {classes} classes: labels are 0 to {classes - 1}; give classes={largest + 1} or more"
        )
    check_limits(len(train_split), train_examples, validation_examples)
    if augmentation is not None:
        check_shape(augmentation, shape)

    validation = None
    if train_examples is not None or validation_examples:
        kept, held_out = choose_examples(train_split.labels, train_examples, validation_examples)
        if held_out.size:
            validation = Split(train_split.images[held_out], train_split.labels[held_out])
        train_split = Split(train_split.images[kept], train_split.labels[kept])
    return Data(
        name=name,
        train=train_split,
        test=test_split,
        validation=validation,
        classes=classes,
        augmentation=augmentation or _normalising(train_split.images),
    )


def _checked(which: str, images: np.ndarray, labels: np.ndarray) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4:
        raise ValueError(f"{which} images have shape {images.shape}: use [n, h, w, c], with c = 1 for grey images")
    if images.dtype != np.uint8:
        raise ValueError(f"{which} images are {images.dtype}: use uint8 from 0 to 255; normalisation comes later")
    if labels.ndim != 1:
        raise ValueError(f"{which} labels have shape {labels.shape}: use [n], for one-hot labels labels.argmax(axis=1)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{which} labels are {labels.dtype}: use whole numbers, labels.astype('int32')")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} {which} images, but {len(labels)} labels: give equal numbers")
    if not images.size:
        raise ValueError(f"{which} images have shape {images.shape}: give at least one example")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{which} labels are from {labels.min()} to {labels.max()}: use 0 to classes - 1")
    return Split(images, labels.astype(np.int32))


def _normalising(images: UInt8[np.ndarray, "n h w c"]) -> Augmentation:
    # Integer sums are exact, and need no copy of the images as floats.
    pixels = images[..., 0].size
    sums = np.einsum("nhwc->c", images, dtype=np.int64).tolist()
    squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64).tolist()
    mean = [total / pixels for total in sums]
    std = [math.sqrt(pixels * square - total**2) / pixels for total, square in zip(sums, squares, strict=True)]
    # A constant channel is shifted but not scaled.
    return Augmentation(mean=tuple(mean), std=tuple(deviation or 1.0 for deviation in std))
