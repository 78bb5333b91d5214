"""Finds the features of a prepared data set that hold the images and the labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from kd_local.data.pixels import check_channels_last, decode, eight_bits
from kd_local.errors import unknown


@dataclass(frozen=True)
class FeatureKeys:
    """The names of two features of a prepared data set.

    Attributes:
        image: name of the feature of the images: an `Image`, or a `Tensor` [h, w, c] that is held in memory.
        label: name of the feature of the labels: a `ClassLabel`.
    """

    image: str = "image"
    label: str = "label"


USUAL_KEYS = FeatureKeys()


def image_feature(features: Mapping[str, Any], key: str) -> Any:
    """The feature of the images.

    Raises:
        ValueError: no feature has this name, or the feature has no images of 8 or 16 bits with the channels last.
    """
    feature = _of_name(features, key, "image_key")
    image = is_encoded(feature) or (
        _kind(feature) == "Tensor" and len(feature.shape) == 3 and None not in feature.shape
    )
    if not image or np.dtype(feature.np_dtype) not in (np.uint8, np.uint16):
        raise ValueError(
            f"image_key {key!r} names {_described(feature)}: images are read from an Image, or from a Tensor of one "
            f"shape [h, w, c], of uint8 or uint16; use another of the features {_listed(features)}"
        )
    if not is_encoded(feature):
        check_channels_last(feature.shape, f"images of the feature {key!r}")
    return feature


def label_feature(features: Mapping[str, Any], key: str) -> Any:
    """The feature of the labels.

    Raises:
        ValueError: no feature has this name, or the feature is not a `ClassLabel` with a number of classes.
    """
    feature = _of_name(features, key, "label_key")
    if _kind(feature) != "ClassLabel" or not feature.num_classes:
        raise ValueError(
            f"label_key {key!r} names {_described(feature)}: labels are read from a ClassLabel with its number of "
            f"classes; the features are {_listed(features)}. Name another feature, prepare the set with a ClassLabel, "
            "or use from_arrays"
        )
    return feature


def is_encoded(feature: Any) -> bool:
    """True if a feature holds encoded images."""
    return _kind(feature) in ("Image", "LabeledImage")


def pixels_of(feature: Any, stored: Any) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an image, from the value that a record has for the feature of the images.

    Raises:
        Exception: the value is not an image.
    """
    if is_encoded(feature):
        return decode(stored, feature.shape[-1])
    pixels = np.asarray(feature.decode_example_np(stored))
    return eight_bits(pixels) if pixels.dtype == np.uint16 else pixels


def _of_name(features: Mapping[str, Any], key: str, argument: str) -> Any:
    if key not in features:
        raise unknown(argument, key, features)
    return features[key]


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_described(feature)})" for name, feature in features.items())


def _described(feature: Any) -> str:
    """A text such as `ClassLabel of 10 classes`, `Scalar of int64` or `Sequence of ClassLabel of 10 classes`."""
    kind = _kind(feature)
    if kind == "ClassLabel":
        return f"{kind} of {feature.num_classes} classes" if feature.num_classes else f"{kind} without classes"
    inner = getattr(feature, "feature", None)
    if inner is not None and inner is not feature:
        return f"{kind} of {_described(inner)}"
    if isinstance(dtype := getattr(feature, "np_dtype", None), dict) or dtype is None or kind == "Text":
        return kind
    return f"{kind} of {np.dtype(dtype)}"


def _kind(feature: Any) -> str:
    return type(feature).__name__
