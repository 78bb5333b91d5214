"""Loads data sets of labelled images: known data sets by name, and other prepared data sets.

Images are uint8. Small images of one shape are held in memory; others are read when they are needed. They are augmented
and normalised on the device.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from kd_local.data import prepared
from kd_local.data.arrays import from_arrays
from kd_local.data.digits import read_digits
from kd_local.data.features import FeatureKeys
from kd_local.data.registry import INCLUDED, DatasetSpec, look_up
from kd_local.data.splits import Data, Examples, Split, check_limits, choose_examples
from kd_local.data.streamed import StreamedSplit

_MOST_WORKERS = 16


def describe(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    workers: int | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
    test_examples: int = 0,
    image_key: str = "image",
    label_key: str = "label",
    augment: bool = True,
) -> DatasetSpec:
    """The specification of the data that `load` returns for these arguments, with the sizes of its splits.

    No example is read. The numbers of examples are those of the folder, or the published ones for a known data set that
    is not prepared.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: see `load`.
    """
    spec = look_up(name, data_dir, image_size, FeatureKeys(image_key, label_key))
    if workers is not None and not spec.streamed:
        raise ValueError(f"workers is {workers}, but the images of {name} are held in memory: leave it out")
    if workers is not None and workers < 0:
        raise ValueError(f"workers is {workers}: use 1 or more, 0 to decode in this process, or None for the default")
    check_limits(spec.train, train_examples, validation_examples, test_examples)
    if not test_examples and spec.test_split is None:
        raise ValueError(
            f"{name} has the split train, but no split for testing: hold out some of its {spec.train} examples with "
            f"test_examples, such as test_examples={max(spec.train // 5, 1)}"
        )
    left = spec.train - validation_examples - test_examples
    return replace(
        spec,
        train=left if train_examples is None else train_examples,
        test=test_examples or spec.test,
        augmentation=spec.augmentation if augment else replace(spec.augmentation, pad=0, flip=False),
    )


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    workers: int | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
    test_examples: int = 0,
    image_key: str = "image",
    label_key: str = "label",
    augment: bool = True,
) -> Data:
    """A data set: `cifar10`, `cifar100`, `digits`, `imagenet2012`, `stl10`, `svhn_cropped`, or another prepared one.

    >>> digits = load("digits")
    >>> len(digits.train), digits.train.shape, digits.classes
    (1437, (8, 8, 1), 10)

    - STL-10 has only its labelled examples, and SVHN has no `extra`. ImageNet is tested on its validation split.
    - Any other name is a folder in `data_dir`, or `name/config`. It needs a feature of images and one of labels, and
      the split `train`. It is tested on its split `test`, or on `validation`, or on examples cut from `train`.
    - Images of one shape of at most 128 pixels are held in memory. Their augmentation crops from a border of 1/8 of the
      image and does not flip. All other images are a `StreamedSplit` with the augmentation of ImageNet.
    - Images of 16 bits are scaled to 8: x / 257, rounded.
    - Training, validation and test examples that are cut from `train` have its class proportions, and the choice is
      always the same. To choose examples of a streamed split, all its labels are read, and therefore all its files.

    Args:
        name: name in tensorflow-datasets; `digits` is part of the package.
        data_dir: folder in which tensorflow-datasets prepared the data set; see `prepared.find`.
        image_size: size of the images of a `StreamedSplit` in pixels; by default 224.
        workers: number of processes of each iterator over a `StreamedSplit`; by default one per core, at most 16.
        train_examples: number of training examples; by default all that are not held out.
        validation_examples: number of examples of the training split to hold out; by default none.
        test_examples: number of examples of the training split to hold out for testing, in place of the data set's
            own test split; by default none.
        image_key: name of the feature that holds the images: an `Image` of uint8 or uint16, or a small `Tensor`.
        label_key: name of the feature that holds the labels, a `ClassLabel`.
        augment: if False, there are no random crops and flips, and in training too the images of a `StreamedSplit` are
            resized and cropped to their centre.

    Raises:
        ValueError: an unknown name or feature, features that are no images or labels, a `data_dir` for `digits`, an
            `image_size` or `workers` for images in memory, a number out of range, no examples for testing, or prepared
            data that is damaged or does not match its name.
        FileNotFoundError: the data set, or one of its files, is missing.
        ModuleNotFoundError: a package that is needed to read the data set is missing.

    Reference:
        Augmentation of CIFAR-10, STL-10 and SVHN: code of the authors of ContSup (arXiv 2312.07636). CIFAR-100:
        mdistiller, the code of DKD (arXiv 2203.08679). ImageNet: Szegedy et al. (arXiv 1409.4842), section 6, with the
        means of torchvision's models.
    """
    spec = describe(
        name,
        data_dir=data_dir,
        image_size=image_size,
        workers=workers,
        train_examples=train_examples,
        validation_examples=validation_examples,
        test_examples=test_examples,
        image_key=image_key,
        label_key=label_key,
        augment=augment,
    )
    if name == INCLUDED:
        return from_arrays(
            read_digits("train"),
            None if test_examples else read_digits("test"),
            name=name,
            classes=spec.classes,
            augmentation=spec.augmentation,
            train_examples=train_examples,
            validation_examples=validation_examples,
            test_examples=test_examples,
        )

    folder, keys = prepared.find(name, data_dir), FeatureKeys(image_key, label_key)
    train = prepared.PreparedSplit(folder, "train", keys)

    def split(source: prepared.PreparedSplit, chosen: Int64[np.ndarray, " n"] | None = None) -> Examples:
        if not spec.streamed:
            return Split(*source.examples(chosen))
        processes = _default_workers() if workers is None else workers
        return StreamedSplit(source, image_size=spec.shape[0], workers=processes, chosen=chosen, random_crops=augment)

    choice = None
    if train_examples is not None or validation_examples or test_examples:
        choice = choose_examples(train.labels(), train_examples, validation_examples, test_examples)
    if choice is not None and test_examples:
        test = split(train, choice.test)
    else:
        assert spec.test_split is not None  # checked by `describe`
        test = split(prepared.PreparedSplit(folder, spec.test_split, keys))
    return Data(
        name=name,
        train=split(train, choice and choice.train),
        test=test,
        validation=split(train, choice.validation) if choice is not None and choice.validation.size else None,
        classes=spec.classes,
        augmentation=spec.augmentation,
    )


def training_labels(
    name: str,
    *,
    data_dir: str | Path | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
    test_examples: int = 0,
    image_key: str = "image",
    label_key: str = "label",
) -> Int32[np.ndarray, " n"]:
    """The labels of the training split that `load` returns for these arguments. No image is decoded.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: see `load`.
    """
    keys = FeatureKeys(image_key, label_key)
    spec = look_up(name, data_dir, None, keys)
    check_limits(spec.train, train_examples, validation_examples, test_examples)
    if name == INCLUDED:
        labels = read_digits("train")[1]
    else:
        labels = prepared.PreparedSplit(prepared.find(name, data_dir), "train", keys).labels()
    return labels[choose_examples(labels, train_examples, validation_examples, test_examples).train]


def _default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)
