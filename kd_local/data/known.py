"""The data sets known by name, and what is found out about others that are prepared beside them."""

from dataclasses import dataclass, replace
from pathlib import Path

from kd_local.data import prepared
from kd_local.data.augmentation import Augmentation
from kd_local.errors import unknown


@dataclass(frozen=True)
class Known:
    """What is known of a data set before it is read.

    Attributes:
        shape: height, width and channels of its images, as batches give them.
        classes: of its labels.
        train, test: how many examples its splits have.
        augmentation: of its images.
        streamed: whether its images are read as they are needed, or else held in memory.
        evaluated_on: the split that is tested on, by the name it has in the folder.
    """

    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    augmentation: Augmentation
    streamed: bool = False
    evaluated_on: str = "test"


IMAGE_SIZE = 224
"""In pixels, of streamed images, unless another is asked for."""

LARGEST_HELD = 128
"""In pixels, of images that are held in memory, of data sets that are known by their folder only."""

_HALF = (127.5, 127.5, 127.5)
_IMAGENET = Augmentation(
    pad=0,  # random crops are made before, of images at their own size
    flip=True,
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
)
KNOWN = {
    "cifar10": Known(
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
    "cifar100": Known(
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
    "digits": Known(
        shape=(8, 8, 1),
        classes=10,
        train=1_437,
        test=360,
        # Those of the training split. A mirrored digit is not that digit.
        augmentation=Augmentation(padding="zero", pad=1, flip=False, mean=(77.89,), std=(95.87,)),
    ),
    "imagenet2012": Known(
        shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
        classes=1_000,
        train=1_281_167,
        test=50_000,
        augmentation=_IMAGENET,
        streamed=True,
        evaluated_on="validation",  # the labels of `test` are not public
    ),
    "stl10": Known(
        shape=(96, 96, 3),
        classes=10,
        train=5_000,
        test=8_000,
        augmentation=Augmentation(padding="zero", pad=4, flip=True, mean=_HALF, std=_HALF),
    ),
    "svhn_cropped": Known(
        shape=(32, 32, 3),
        classes=10,
        train=73_257,
        test=26_032,
        augmentation=Augmentation(padding="zero", pad=2, flip=False, mean=_HALF, std=_HALF),
    ),
}


def look_up(name: str, data_dir: str | Path | None, image_size: int | None) -> Known:
    """What is known of a data set by its name, or else by the descriptions in its folder in `data_dir`.

    Raises:
        ValueError: no such name or folder, one that is not of labelled images or cannot be read, or an image size that
            is out of range or asked of images in memory.
        ModuleNotFoundError: a package is missing that reads the folder.
    """
    if name in KNOWN:
        known = KNOWN[name]
    elif prepared.is_there(name, data_dir):
        known = _found(prepared.find(name, data_dir))
    else:
        error = unknown("dataset", name, KNOWN)
        if data_dir is None:
            raise error
        raise ValueError(f"{error}; nor is anything prepared in {Path(data_dir) / name}")
    if image_size is None:
        return known
    if not known.streamed:
        height, width, _ = known.shape
        raise ValueError(
            f"image_size {image_size} for {name}: its images are {height}x{width} and stay so, leave it out"
        )
    if image_size < 1:
        raise ValueError(f"image_size {image_size}: use 1 or more pixels, as {IMAGE_SIZE}")
    return replace(known, shape=(image_size, image_size, 3))


def _found(folder: Path) -> Known:
    """Of a data set that is known by its folder only."""
    contents = prepared.contents(folder)
    evaluated_on = next((split for split in ("test", "validation") if split in contents.examples), None)
    if "train" not in contents.examples or evaluated_on is None:
        raise ValueError(
            f"{folder} has the splits {', '.join(contents.examples)}: use a data set with train and with test or "
            "validation"
        )
    height, width, channels = contents.shape
    if height is None or width is None or channels is None or max(height, width) > LARGEST_HELD:
        streamed, shape, augmentation = True, (IMAGE_SIZE, IMAGE_SIZE, 3), _IMAGENET
    else:
        half = (127.5,) * channels
        streamed, shape = False, (height, width, channels)
        augmentation = Augmentation(pad=min(height, width) // 8, mean=half, std=half)
    return Known(
        shape=shape,
        classes=contents.classes,
        train=contents.examples["train"],
        test=contents.examples[evaluated_on],
        augmentation=augmentation,
        streamed=streamed,
        evaluated_on=evaluated_on,
    )
