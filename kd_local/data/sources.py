"""Where labelled images come from: the data sets known by name, or arrays of one's own.

All images are held in memory as uint8. What a network sees is made of them on the device.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from kd_local.data import prepared
from kd_local.data.augmentation import Augmentation, check_shape
from kd_local.data.digits import read_digits
from kd_local.data.splits import Data, Split, check_limits, parts
from kd_local.errors import unknown


@dataclass(frozen=True)
class _Known:
    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    augmentation: Augmentation


_HALF = (127.5, 127.5, 127.5)
_KNOWN = {
    "cifar10": _Known(
        shape=(32, 32, 3),
        classes=10,
        train=50_000,
        test=10_000,
        augmentation=Augmentation(
            padding="reflect",
            pad=4,
            flip=True,
            mean=(125.3, 123.0, 113.9),
            std=(63.0, 62.1, 66.7),
        ),
    ),
    "cifar100": _Known(
        shape=(32, 32, 3),
        classes=100,
        train=50_000,
        test=10_000,
        augmentation=Augmentation(
            padding="zero",
            pad=4,
            flip=True,
            mean=(0.5071 * 255, 0.4867 * 255, 0.4408 * 255),
            std=(0.2675 * 255, 0.2565 * 255, 0.2761 * 255),
        ),
    ),
    "digits": _Known(
        shape=(8, 8, 1),
        classes=10,
        train=1_437,
        test=360,
        # Those of the training split. A mirrored digit is not that digit.
        augmentation=Augmentation(padding="zero", pad=1, flip=False, mean=(77.89,), std=(95.87,)),
    ),
    "stl10": _Known(
        shape=(96, 96, 3),
        classes=10,
        train=5_000,
        test=8_000,
        augmentation=Augmentation(padding="zero", pad=4, flip=True, mean=_HALF, std=_HALF),
    ),
    "svhn_cropped": _Known(
        shape=(32, 32, 3),
        classes=10,
        train=73_257,
        test=26_032,
        augmentation=Augmentation(padding="zero", pad=2, flip=False, mean=_HALF, std=_HALF),
    ),
}


@dataclass(frozen=True)
class Description:
    """What is known of a data set before it is read.

    Attributes:
        shape: height, width and channels of its images.
        classes: of its labels.
        train: how many examples are trained on.
        augmentation: of its images.
    """

    shape: tuple[int, int, int]
    classes: int
    train: int
    augmentation: Augmentation


def describe(name: str, *, train_examples: int | None = None, validation_examples: int = 0) -> Description:
    """What `load` would give for these arguments, without reading anything.

    Raises:
        ValueError: see `load`.
    """
    if name not in _KNOWN:
        raise unknown("dataset", name, _KNOWN)
    known = _KNOWN[name]
    check_limits(known.train, train_examples, validation_examples)
    train = known.train - validation_examples if train_examples is None else train_examples
    return Description(known.shape, known.classes, train, known.augmentation)


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
) -> Data:
    """A known data set: `cifar10`, `cifar100`, `digits`, `stl10` or `svhn_cropped`.

    Of STL-10 the labelled part, of SVHN without `extra`.

    Args:
        name: of the data set, as tensorflow-datasets spells it; `digits` comes with the package.
        data_dir: where tensorflow-datasets prepared it; see `prepared.find`.
        train_examples: the most that are trained on; by default all that are not held out.
        validation_examples: so many examples of the training split are held out; by default none.

    Both parts hold the classes in the proportions of the training split, and are the same each time.

    Raises:
        ValueError: an unknown name, a `data_dir` for `digits`, more examples than there are,
            prepared data that is damaged or something else than its name says.
        FileNotFoundError: the data set, or a file of it, is not there.

    Reference:
        Augmentation of CIFAR-10, STL-10 and SVHN: ContSup (arXiv 2312.07636), the authors' code;
        of CIFAR-100: mdistiller, the code of DKD (arXiv 2203.08679).
    """
    describe(name, train_examples=train_examples, validation_examples=validation_examples)
    known = _KNOWN[name]
    if name == "digits":
        if data_dir is not None:
            raise ValueError(f"data_dir {str(data_dir)!r}: digits comes with the package, leave it out")
        return from_arrays(
            read_digits("train"),
            read_digits("test"),
            name=name,
            classes=known.classes,
            augmentation=known.augmentation,
            train_examples=train_examples,
            validation_examples=validation_examples,
        )

    folder = prepared.find(name, data_dir)
    sources = [prepared.PreparedSplit(folder, split) for split in ("train", "test")]
    for source in sources:
        if (source.shape, source.classes) != (known.shape, known.classes):
            raise ValueError(
                f"{folder} holds images of shape {source.shape} and {source.classes} classes, but "
                f"{name} has {known.shape} and {known.classes}: use another data_dir"
            )
    train, test = sources
    check_limits(len(train), train_examples, validation_examples)
    validation = None
    if train_examples is None and not validation_examples:
        trained_on = Split(*train.examples())
    else:
        kept, held_out = parts(train.labels(), train_examples, validation_examples)
        trained_on = Split(*train.examples(kept))
        if held_out.size:
            validation = Split(*train.examples(held_out))
    return Data(name, trained_on, Split(*test.examples()), validation, known.classes, known.augmentation)


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
    """Data from arrays of images, uint8 `[n, h, w, c]`, and labels, whole numbers `[n]`.

    Args:
        train, test: images and labels; of both splits `h`, `w` and `c` are the same.
        classes: by default one more than the largest label.
        augmentation: by default no crops or flips, and the mean and standard deviation of the
            images that are trained on.
        train_examples, validation_examples: see `load`.
        name: for messages and records.

    Raises:
        ValueError: arrays or limits that do not fit this description.
    """
    train_split, test_split = _checked("train", *train), _checked("test", *test)
    shape, test_shape = train_split.images.shape[1:], test_split.images.shape[1:]
    if shape != test_shape:
        raise ValueError(f"train images are {shape}, but test images {test_shape}: resize or crop one of them")
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
        kept, held_out = parts(train_split.labels, train_examples, validation_examples)
        if held_out.size:
            validation = Split(train_split.images[held_out], train_split.labels[held_out])
        train_split = Split(train_split.images[kept], train_split.labels[kept])
    return Data(
        name=name,
        train=train_split,
        test=test_split,
        validation=validation,
        classes=classes,
        augmentation=augmentation or _measured(train_split.images),
    )


def _checked(which: str, images: np.ndarray, labels: np.ndarray) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4:
        raise ValueError(f"{which} images have shape {images.shape}: use [n, h, w, c], with c = 1 for grey ones")
    if images.dtype != np.uint8:
        raise ValueError(f"{which} images are {images.dtype}: use uint8 from 0 to 255; normalisation comes later")
    if labels.ndim != 1:
        raise ValueError(f"{which} labels have shape {labels.shape}: use [n], for one-hot labels labels.argmax(axis=1)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{which} labels are {labels.dtype}: use whole numbers, labels.astype('int32')")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} {which} images, but {len(labels)} labels: give as many")
    if not images.size:
        raise ValueError(f"{which} images have shape {images.shape}: give at least one example")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{which} labels are from {labels.min()} to {labels.max()}: use 0 to classes - 1")
    return Split(images, labels.astype(np.int32))


def _measured(images: UInt8[np.ndarray, "n h w c"]) -> Augmentation:
    # Whole numbers are summed exactly, and without a copy of the images as floats.
    pixels = images[..., 0].size
    sums = np.einsum("nhwc->c", images, dtype=np.int64).tolist()
    squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64).tolist()
    mean = [total / pixels for total in sums]
    std = [math.sqrt(pixels * square - total**2) / pixels for total, square in zip(sums, squares, strict=True)]
    # A channel of one value only is shifted, not scaled.
    return Augmentation(mean=tuple(mean), std=tuple(deviation or 1.0 for deviation in std))
