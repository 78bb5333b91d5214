"""Specifications of data sets: a table of known names, and the metadata of prepared folders."""

from dataclasses import dataclass, replace
from pathlib import Path

from kd_local.choices.data import INCLUDED, check_name, is_there
from kd_local.data import prepared
from kd_local.data.augmentation import Augmentation
from kd_local.data.features import USUAL_KEYS, FeatureKeys


@dataclass(frozen=True)
class DatasetSpec:
    """The properties of a data set that are known before its examples are read.

    Attributes:
        shape: height, width and channels of the images in a batch.
        classes: number of classes.
        train, test: numbers of training and of test examples in the prepared data set, or the published numbers if it
            is not prepared.
        augmentation: the usual augmentation for the data set.
        streamed: True if images are read when they are needed, False if they are held in memory.
        test_split: name of the folder's split that is used for testing; None if there is no such split.
    """

    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    augmentation: Augmentation
    streamed: bool = False
    test_split: str | None = "test"


IMAGE_SIZE = 224
"""Default size of streamed images, in pixels."""

LARGEST_HELD = 128
"""Largest side, in pixels, of images that are held in memory, for data sets that are not in this table."""

_HALF = (127.5, 127.5, 127.5)
_IMAGENET = Augmentation(
    pad=0,  # random crops are made before this, from images of the original size
    flip=True,
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
)
DATASETS = {
    "cifar10": DatasetSpec(
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
    "cifar100": DatasetSpec(
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
    "digits": DatasetSpec(
        shape=(8, 8, 1),
        classes=10,
        train=1_437,
        test=360,
        # Mean and std of the training split. No flips: a mirrored digit is not a digit.
        augmentation=Augmentation(padding="zero", pad=1, flip=False, mean=(77.89,), std=(95.87,)),
    ),
    "imagenet2012": DatasetSpec(
        shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
        classes=1_000,
        train=1_281_167,
        test=50_000,
        augmentation=_IMAGENET,
        streamed=True,
        test_split="validation",  # the labels of `test` are not public
    ),
    "stl10": DatasetSpec(
        shape=(96, 96, 3),
        classes=10,
        train=5_000,
        test=8_000,
        augmentation=Augmentation(padding="zero", pad=4, flip=True, mean=_HALF, std=_HALF),
    ),
    "svhn_cropped": DatasetSpec(
        shape=(32, 32, 3),
        classes=10,
        train=73_257,
        test=26_032,
        augmentation=Augmentation(padding="zero", pad=2, flip=False, mean=_HALF, std=_HALF),
    ),
}


def look_up(
    name: str, data_dir: str | Path | None, image_size: int | None, keys: FeatureKeys = USUAL_KEYS
) -> DatasetSpec:
    """The specification of a data set, from its folder in `data_dir` or, if it is not prepared there, from its name.

    Args:
        name: name of the data set.
        data_dir: the folder of prepared data sets.
        image_size: size of streamed images in pixels; None for `IMAGE_SIZE`.
        keys: names of the features that hold images and labels.

    Raises:
        ValueError: no data set or folder has this name; the folder cannot be read, has no labelled images, or has
            images of another shape or other classes than its name; or the image size is out of range or given for
            images in memory.
        ModuleNotFoundError: a package that reads the folder is missing.
    """
    check_name(name, data_dir)
    if name in DATASETS:
        spec = DATASETS[name]
        if name != INCLUDED and is_there(name, data_dir):
            spec = _with_numbers(name, spec, prepared.find(name, data_dir), keys)
        elif keys != USUAL_KEYS:
            raise _no_other_features(name, keys)
    else:
        spec = _read_spec(prepared.find(name, data_dir), keys)
    if image_size is None:
        return spec
    if not spec.streamed:
        height, width, _ = spec.shape
        raise ValueError(f"image_size {image_size} for {name}: its images stay {height}x{width}, leave image_size out")
    if image_size < 1:
        raise ValueError(f"image_size {image_size}: use 1 or more pixels, such as {IMAGE_SIZE}")
    return replace(spec, shape=(image_size, image_size, 3))


def _no_other_features(name: str, keys: FeatureKeys) -> ValueError:
    """The error for names of features of a data set that has none, or is not prepared."""
    key, value = next((f"{field}_key", value) for field, value in vars(keys).items() if value != field)
    if name == INCLUDED:
        return ValueError(f"{key} {value!r}: {name} is part of the package, leave {key} out")
    return ValueError(f"{key} {value!r}: {name} is not prepared, give the data_dir that holds it")


def _with_numbers(name: str, spec: DatasetSpec, folder: Path, keys: FeatureKeys) -> DatasetSpec:
    """The specification with the folder's numbers of examples, and with the classes of the labels that `keys` names."""
    contents = prepared.contents(folder, keys)
    if keys.label != USUAL_KEYS.label:
        spec = replace(spec, classes=contents.classes)
    shape = "of any shape" if spec.streamed else f"of shape {spec.shape}"
    if contents.classes != spec.classes or not (spec.streamed or contents.shape == spec.shape):
        raise ValueError(
            f"{folder} holds images of shape {contents.shape} and {contents.classes} classes, but {name} has images "
            f"{shape} and {spec.classes} classes: use another data_dir"
        )
    test_split = spec.test_split if spec.test_split in contents.examples else None
    return replace(
        spec,
        train=_training_examples(folder, contents),
        test=contents.examples.get(spec.test_split or "", 0),
        test_split=test_split,
    )


def _training_examples(folder: Path, contents: prepared.Contents) -> int:
    if "train" not in contents.examples:
        raise ValueError(f"{folder} has no split 'train', only {', '.join(contents.examples)}: use another data set")
    return contents.examples["train"]


def _read_spec(folder: Path, keys: FeatureKeys) -> DatasetSpec:
    """The specification of a prepared data set that is not in the table."""
    contents = prepared.contents(folder, keys)
    train = _training_examples(folder, contents)
    test_split = next((split for split in ("test", "validation") if split in contents.examples), None)
    height, width, channels = contents.shape
    if height is None or width is None or channels is None or max(height, width) > LARGEST_HELD:
        if not contents.encoded:
            raise ValueError(
                f"{folder} has images of {height}x{width}, and those above {LARGEST_HELD} pixels are streamed; "
                + prepared.not_streamed(keys.image)
            )
        streamed, shape, augmentation = True, (IMAGE_SIZE, IMAGE_SIZE, 3), _IMAGENET
    else:
        half = (127.5,) * channels
        streamed, shape = False, (height, width, channels)
        augmentation = Augmentation(pad=min(height, width) // 8, mean=half, std=half)
    return DatasetSpec(
        shape=shape,
        classes=contents.classes,
        train=train,
        test=contents.examples.get(test_split or "", 0),
        augmentation=augmentation,
        streamed=streamed,
        test_split=test_split,
    )
