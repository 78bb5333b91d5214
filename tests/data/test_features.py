"""The features of images and labels in a prepared data set, and the errors for other features."""

from typing import Any

import numpy as np
import pytest

from kd_local.data import Split, describe, load, training_labels
from kd_local.data.features import image_feature, label_feature

tfds = pytest.importorskip("tensorflow_datasets")


def _features() -> dict[str, Any]:
    kinds = tfds.features
    label = kinds.ClassLabel(num_classes=3)
    return dict(
        kinds.FeaturesDict(
            {
                "image": kinds.Image(shape=(8, 8, 3)),
                "deep": kinds.Image(shape=(8, 8, 1), dtype=np.uint16),
                "real": kinds.Image(shape=(8, 8, 1), dtype=np.float32),
                "array": kinds.Tensor(shape=(8, 8, 3), dtype=np.uint8),
                "planes": kinds.Tensor(shape=(3, 8, 8), dtype=np.uint8),
                "film": kinds.Sequence(kinds.Image()),
                "label": label,
                "several": kinds.Sequence(label),
                "boxes": kinds.Sequence({"label": label}),
                "number": kinds.Scalar(np.int64),
                "text": kinds.Text(),
                "open": kinds.ClassLabel(),
            }
        ).items()
    )


def test_images_and_labels_are_found() -> None:
    features = _features()
    for key in ("image", "deep", "array"):
        assert image_feature(features, key) is features[key]
    assert label_feature(features, "label") is features["label"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("real", "image_key 'real' names Image of float32: images are read from an Image, .* of uint8 or uint16; use"),
        ("film", "image_key 'film' names Sequence of Image of uint8: "),
        ("label", "names ClassLabel of 3 classes: .* use another of the features image .Image of uint8., deep"),
        ("planes", r"images of the feature 'planes' have shape \(3, 8, 8\), channels first"),
        ("imag", r"unknown image_key 'imag': use image, deep, .* \(nearest: image\)"),
    ],
)
def test_features_that_are_not_images_are_refused(key: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        image_feature(_features(), key)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("several", "Sequence of ClassLabel of 3 classes"),
        ("boxes", "Sequence of FeaturesDict"),
        ("number", "Scalar of int64"),
        ("text", "Text"),
        ("open", "ClassLabel without classes"),
        ("image", "Image of uint8"),
    ],
)
def test_a_label_of_another_kind_is_named(key: str, kind: str) -> None:
    text = f"label_key '{key}' names {kind}: labels are read from a ClassLabel with .* label .ClassLabel of 3 classes."
    with pytest.raises(ValueError, match=text):
        label_feature(_features(), key)


def test_features_with_other_names_are_read(prepare: Any, examples: Any) -> None:
    features = {"picture": tfds.features.Image(shape=(8, 8, 3)), "kind": tfds.features.ClassLabel(num_classes=3)}
    # A second image, which nobody asks for, and which tensorflow-datasets does not decode without OpenCV.
    features["depth"] = tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16)
    written = examples(12, (8, 8, 3), 3)
    data_dir = prepare("named", features=features, keys=("picture", "kind"), train=written, test=written[:3])
    keys = {"image_key": "picture", "label_key": "kind"}
    data = load("named", data_dir=data_dir, **keys)
    assert describe("named", data_dir=data_dir, **keys).classes == data.classes == 3
    assert isinstance(data.train, Split)
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        assert np.array_equal(image, written[image[0, 0, 0]][0]) and label == written[image[0, 0, 0]][1]
    labels = training_labels("named", data_dir=data_dir, validation_examples=3, **keys)
    assert np.bincount(labels).tolist() == [3, 3, 3]
    for read in (load, describe):
        with pytest.raises(ValueError, match="named/1.0.0: unknown image_key 'image': use depth, kind or picture"):
            read("named", data_dir=data_dir)
        with pytest.raises(
            ValueError, match=r"unknown label_key 'kinds': use depth, kind or picture \(nearest: kind\)"
        ):
            read("named", data_dir=data_dir, image_key="picture", label_key="kinds")


def test_other_labels_of_a_known_data_set(prepare: Any, examples: Any) -> None:
    written = examples(10, (32, 32, 3), 100)
    data_dir = prepare("cifar100", train=written, test=written[:2])
    data = load("cifar100", data_dir=data_dir, label_key="coarse_label")
    assert describe("cifar100", data_dir=data_dir, label_key="coarse_label").classes == data.classes == 20
    assert isinstance(data.train, Split)
    assert sorted(data.train.labels.tolist()) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    with pytest.raises(ValueError, match="label_key 'coarse': digits is part of the package, leave label_key out"):
        load("digits", label_key="coarse")
    with pytest.raises(ValueError, match="image_key 'picture': cifar10 is not prepared, give the data_dir"):
        describe("cifar10", data_dir=data_dir, image_key="picture")


def test_arrays_are_read_into_memory(prepare: Any, examples: Any) -> None:
    features = {"image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint16), "label": _features()["label"]}
    written = [(image.astype(np.uint16) * 257, label) for image, label in examples(6, (8, 8, 1), 3)]
    data_dir = prepare("arrays", features=features, train=written, test=written[:2])
    data = load("arrays", data_dir=data_dir)
    assert isinstance(data.train, Split)
    for image in data.train.images:
        assert np.array_equal(image, written[image[0, 0, 0]][0] // 257)
    large = {**features, "image": tfds.features.Tensor(shape=(130, 2, 1), dtype=np.uint8)}
    image = np.zeros((130, 2, 1), np.uint8)
    prepare("large", features=large, train=[(image, 0)], test=[(image, 0)])
    with pytest.raises(ValueError, match="large/1.0.0 has images of 130x2, .* 'image' is a Tensor, .* with an Image"):
        describe("large", data_dir=data_dir)
