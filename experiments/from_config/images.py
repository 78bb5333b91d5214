"""Describes and reads the images that a config names."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from experiments.from_config.numbers import pixel_numbers
from kd_local.data import Augmentation, Data, DatasetSpec, RandAugment, describe, load, training_labels
from kd_local.paths import read_path


def describe_images(config: ConfigDict) -> DatasetSpec:
    """Number, shape and augmentation of the images. No image is read.

    Raises:
        ValueError: the data set is unknown, or a value of `config.data` is out of range.
    """
    spec = describe(
        config.data.name,
        image_size=config.data.image_size,
        workers=config.data.workers,
        augment=config.data.augment,
        **_choice(config),
    )
    return replace(spec, augmentation=_augmentation(config, spec.augmentation))


def read_images(config: ConfigDict, augmentation: Augmentation) -> Data:
    """Reads the images of the config. The result has the given augmentation."""
    data = load(
        config.data.name,
        image_size=config.data.image_size,
        augment=config.data.augment,
        workers=config.data.workers,
        **_choice(config),
    )
    return replace(data, augmentation=augmentation)


def read_training_labels(config: ConfigDict) -> Int32[np.ndarray, " n"]:
    """The labels of the training images of the config."""
    return training_labels(config.data.name, **_choice(config))


def _choice(config: ConfigDict) -> dict[str, Any]:
    """The arguments that say which examples are read, and from where."""
    return {
        "data_dir": None if config.data.data_dir is None else read_path(config.data.data_dir, "data.data_dir"),
        "train_examples": config.data.train_examples,
        "validation_examples": config.data.validation_examples,
        "test_examples": config.data.test_examples,
        "image_key": config.data.image_key,
        "label_key": config.data.label_key,
    }


def _augmentation(config: ConfigDict, usual: Augmentation) -> Augmentation:
    """The usual augmentation with the config's normalisation and strong view."""
    return replace(
        usual,
        mean=of_channels(config, "data.mean", usual.mean),
        std=of_channels(config, "data.std", usual.std),
        strong=RandAugment(**config.strong_view),
    )


def of_channels(config: ConfigDict, key: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    """The numbers of a mean or a standard deviation of each channel, on the scale 0 to 255; `usual` if not set.

    Raises:
        ValueError: a number is out of range, or there is another number of channels.
    """
    group, _, name = key.partition(".")
    text = config[group][name]
    return usual if text is None else pixel_numbers(key, text, usual)
