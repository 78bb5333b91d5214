"""Data sets by name."""

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_local.data.augmentation import Augmentation
from kd_local.data.sources import describe, load, training_labels
from kd_local.data.splits import Split
from kd_local.data.streamed import StreamedSplit

TFDS = Path(os.environ.get("KD_LOCAL_TFDS", Path(__file__).parents[2].parent / "shared" / "tfds"))


def test_digits() -> None:
    data = load("digits")
    assert (data.name, data.classes, data.validation) == ("digits", 10, None)
    assert data.train.images.shape == (1437, 8, 8, 1) and len(data.test) == 360
    assert data.train.images.max() == 255
    # The augmentation states the mean and standard deviation of what is trained on.
    assert data.augmentation.mean == pytest.approx([data.train.images.mean()], abs=0.01)
    assert data.augmentation.std == pytest.approx([data.train.images.std()], abs=0.01)


def test_limits_keep_class_proportions_and_the_test_split() -> None:
    whole, data = load("digits"), load("digits", train_examples=500, validation_examples=200)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (500, 200, 360)
    for split, size in ((data.train, 50), (data.validation, 20)):
        assert (np.abs(np.bincount(split.labels) - size) <= 2).all()
    again = load("digits", train_examples=500, validation_examples=200)
    assert np.array_equal(again.train.images, data.train.images)
    parts = [{image.tobytes() for image in split.images} for split in (data.train, data.validation, whole.train)]
    assert not parts[0] & parts[1] and parts[0] | parts[1] < parts[2]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "splits"),
    [
        ("cifar100", (32, 32, 3), 100, ()),
        ("svhn_cropped", (32, 32, 3), 10, ("extra",)),
        ("stl10", (96, 96, 3), 10, ("unlabelled",)),
    ],
)
def test_prepared(name: str, shape: Any, classes: int, splits: tuple[str, ...], prepare: Any, examples: Any) -> None:
    written = {"train": examples(40, shape, classes), "test": examples(20, shape, classes)}
    unlabelled = [(image, -1) for image, _ in examples(3, shape, classes)]
    data_dir = prepare(name, **written, **dict.fromkeys(splits, unlabelled))
    for file in data_dir.glob(f"{name}/*/*-extra*"):
        file.unlink()
    data = load(name, data_dir=data_dir, train_examples=20, validation_examples=10)
    assert (data.name, data.classes) == (name, classes)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 20)
    assert len(load(name, data_dir=data_dir).train) == 40
    seen = []
    for split, origin in (
        (data.train, "train"),
        (data.validation, "train"),
        (data.test, "test"),
    ):
        for image, label in zip(split.images, split.labels, strict=True):
            index = int(image[0, 0, 0])
            assert np.array_equal(image, written[origin][index][0])
            assert label == index % classes
            seen.append((origin, index))
    assert len(set(seen)) == 50


@pytest.mark.exhaustive
def test_real_cifar10() -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    if not (TFDS / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 in {TFDS}")
    data = load("cifar10", data_dir=TFDS, train_examples=100, validation_examples=50)
    assert data.validation is not None
    assert np.bincount(data.train.labels).tolist() == [10] * 10
    assert np.bincount(data.validation.labels).tolist() == [5] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    source = tfds.data_source("cifar10", split="test", data_dir=TFDS, download=False)
    for index in (0, 1, 9999):
        assert np.array_equal(data.test.images[index], source[index]["image"])
        assert data.test.labels[index] == source[index]["label"]


PUBLISHED = {
    "cifar10": ("reflect", 4, True, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ("zero", 4, True, (129.3105, 124.1085, 112.404), (68.2125, 65.4075, 70.4055)),
    "stl10": ("zero", 4, True, (127.5,) * 3, (127.5,) * 3),
    "svhn_cropped": ("zero", 2, False, (127.5,) * 3, (127.5,) * 3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_augmentation_is_that_of_the_papers(name: str, prepare: Any, examples: Any, tmp_path: Path) -> None:
    padding, pad, flip, mean, std = PUBLISHED[name]
    shape = (96, 96, 3) if name == "stl10" else (32, 32, 3)
    prepare(name, train=examples(2, shape, 2), test=examples(1, shape, 1))
    augmentation = load(name, data_dir=tmp_path).augmentation
    assert (augmentation.padding, augmentation.pad, augmentation.flip) == (padding, pad, flip)
    assert augmentation.mean == pytest.approx(mean) and augmentation.std == pytest.approx(std)


def test_other_data_under_a_known_name_are_refused(prepare: Any, examples: Any, tmp_path: Path) -> None:
    prepare("cifar100", train=examples(2, (32, 32, 3), 100), test=examples(2, (32, 32, 3), 100))
    (tmp_path / "cifar100").rename(tmp_path / "cifar10")
    with pytest.raises(ValueError, match=r"100 classes, but cifar10 has .* \(32, 32, 3\) and 10 classes: use"):
        load("cifar10", data_dir=tmp_path)


def test_limits_are_checked_against_the_prepared_numbers(prepare: Any, examples: Any, tmp_path: Path) -> None:
    prepare("cifar100", train=examples(5, (32, 32, 3), 100), test=examples(2, (32, 32, 3), 100))
    with pytest.raises(ValueError, match="train_examples 6 of 5 training examples"):
        load("cifar100", data_dir=tmp_path, train_examples=6)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("cifr10", {}, r"unknown dataset 'cifr10': use cifar10, cifar100, digits, imagenet2012, stl10 or svhn"),
        ("digits", {"data_dir": "/data"}, "data_dir '/data': digits is part of the package"),
        ("digits", {"train_examples": 0}, "train_examples 0 of 1437 training examples"),
        ("cifar100", {"train_examples": 50_001}, "train_examples 50001 of 50000 training"),
        ("svhn_cropped", {"validation_examples": 73_257}, "validation_examples 73257 of 73257"),
        ("stl10", {"validation_examples": -1}, "validation_examples -1 of 5000 training"),
        ("cifar10", {"image_size": 64}, "image_size 64 for cifar10: its images stay 32x32, leave image_size out"),
        ("imagenet2012", {"image_size": 0}, "image_size 0: use 1 or more pixels, such as 224"),
        ("imagenet2012", {"train_examples": 1_281_168}, "train_examples 1281168 of 1281167 training"),
        ("imagenet2012", {"workers": -1}, "workers is -1: use 1 or more, 0 to decode in this process, or None"),
    ],
)
def test_bad_arguments_are_refused_before_data_are_read(name: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        load(name, **{"data_dir": None if name == "digits" else "/nowhere", **arguments})


def test_missing_data_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prepared cifar100 in .*download_and_prepare"):
        load("cifar100", data_dir=tmp_path)


def _augmentation(augmentation: Augmentation) -> tuple[Any, ...]:
    return augmentation.pad, augmentation.flip, augmentation.mean, augmentation.std


IMAGENET = (0, True, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def _photographs(photograph: Any, count: int, classes: int) -> list[Any]:
    return [(photograph(20 + i, 40 - i, seed=i), i % classes) for i in range(count)]


def test_imagenet_is_described_without_its_files(tmp_path: Path) -> None:
    whole = describe("imagenet2012", data_dir=tmp_path / "nowhere")
    assert (whole.shape, whole.classes, whole.train) == ((224, 224, 3), 1000, 1_281_167)
    assert _augmentation(whole.augmentation) == (0, True, pytest.approx(IMAGENET[2]), pytest.approx(IMAGENET[3]))
    part = describe("imagenet2012", image_size=96, validation_examples=10_000)
    assert (part.shape, part.train) == ((96, 96, 3), 1_271_167)


def test_imagenet_is_streamed(prepare: Any, photograph: Any) -> None:
    pytest.importorskip("grain")
    train, validation = _photographs(photograph, 12, 3), _photographs(photograph, 4, 2)
    data_dir = prepare("imagenet2012", train=train, validation=validation)
    data = load("imagenet2012", data_dir=data_dir, image_size=16, workers=0, train_examples=6, validation_examples=3)
    assert isinstance(data.train, StreamedSplit) and data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 3, 4)
    assert data.train.shape == data.test.shape == (16, 16, 3) and data.classes == 1000
    whole = load("imagenet2012", data_dir=data_dir, image_size=16, workers=0)
    assert whole.validation is None and len(whole.train) == 12
    images = {}
    for name, split in (("train", data.train), ("held out", data.validation), ("whole", whole.train)):
        ((read, labels, valid),) = split.evaluation_batches(12)
        images[name] = {image.tobytes() for image in read[valid]}
        assert np.bincount(labels[valid]).tolist() == [len(split) // 3] * 3
    assert not images["train"] & images["held out"] and images["train"] | images["held out"] < images["whole"]
    ((_, labels, _),) = data.test.evaluation_batches(4)
    assert sorted(labels.tolist()) == [0, 0, 1, 1]


def _features(classes: int, **of_image: Any) -> dict[str, Any]:
    features = pytest.importorskip("tensorflow_datasets").features
    return {"image": features.Image(**of_image), "label": features.ClassLabel(num_classes=classes)}


def test_any_prepared_images_of_differing_sizes_are_streamed(prepare: Any, photograph: Any) -> None:
    pytest.importorskip("grain")
    splits = {
        split: _photographs(photograph, count, 5) for split, count in (("train", 6), ("validation", 3), ("test", 2))
    }
    data_dir = prepare("plants", features=_features(5, encoding_format="jpeg"), **splits)
    described = describe("plants", data_dir=data_dir, validation_examples=2)
    assert (described.shape, described.classes, described.train) == ((224, 224, 3), 5, 4)
    assert _augmentation(described.augmentation) == (0, True, pytest.approx(IMAGENET[2]), pytest.approx(IMAGENET[3]))
    data = load("plants", data_dir=data_dir, image_size=8, workers=0)
    assert isinstance(data.train, StreamedSplit) and isinstance(data.test, StreamedSplit)
    assert (data.train.shape, data.classes, len(data.train), len(data.test)) == ((8, 8, 3), 5, 6, 2)


def test_any_prepared_images_of_one_shape_are_held_in_memory_if_they_are_small(prepare: Any, examples: Any) -> None:
    small = prepare(
        "small",
        features=_features(4, shape=(16, 24, 1)),
        train=examples(8, (16, 24, 1), 4),
        validation=examples(4, (16, 24, 1), 4),
    )
    data = load("small", data_dir=small, train_examples=4)
    assert isinstance(data.train, Split) and isinstance(data.test, Split)
    assert data.train.images.shape == (4, 16, 24, 1) and data.test.images.shape == (4, 16, 24, 1)
    described = describe("small", data_dir=small)
    assert (described.shape, described.classes, described.train) == ((16, 24, 1), 4, 8)
    assert _augmentation(data.augmentation) == (2, False, (127.5,), (127.5,))
    assert described.augmentation == data.augmentation
    with pytest.raises(ValueError, match="image_size 8 for small: its images stay 16x24"):
        load("small", data_dir=small, image_size=8)


def test_prepared_sets_that_cannot_be_trained_on(prepare: Any, examples: Any, tmp_path: Path) -> None:
    prepare("alone", features=_features(4, shape=(8, 8, 3)), train=examples(20, (8, 8, 3), 4))
    for read in (describe, load):
        with pytest.raises(
            ValueError, match=r"alone has the split train, but no split for testing: .* test_examples=4"
        ):
            read("alone", data_dir=tmp_path)
    prepare("untrained", features=_features(4, shape=(8, 8, 3)), test=examples(4, (8, 8, 3), 4))
    with pytest.raises(ValueError, match=r"untrained/1.0.0 has no split 'train', only test: use another"):
        describe("untrained", data_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="unknown dataset 'empty': use cifar10"):
        describe("empty", data_dir=tmp_path)


def test_a_test_split_is_cut_from_images_in_memory(prepare: Any, examples: Any) -> None:
    data_dir = prepare("alone", features=_features(4, shape=(8, 8, 3)), train=examples(40, (8, 8, 3), 4))
    arguments = {"data_dir": data_dir, "test_examples": 8, "validation_examples": 4}
    described, data, again = describe("alone", **arguments), load("alone", **arguments), load("alone", **arguments)
    assert data.validation is not None
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [28, 4, 8] and (described.train, described.test) == (28, 8)
    assert [np.bincount(split.labels).tolist() for split in splits] == [[7] * 4, [1] * 4, [2] * 4]
    assert len({image.tobytes() for split in splits for image in split.images}) == 40
    assert np.array_equal(data.test.images, again.test.images)
    labels = training_labels("alone", data_dir=data_dir, test_examples=8, validation_examples=4)
    assert labels.tolist() == data.train.labels.tolist()


def test_a_test_split_is_cut_from_streamed_images(prepare: Any, photograph: Any) -> None:
    pytest.importorskip("grain")
    data_dir = prepare("alone", features=_features(5), train=_photographs(photograph, 15, 5))
    data = load("alone", data_dir=data_dir, image_size=8, workers=0, test_examples=5, validation_examples=5)
    assert data.validation is not None
    found = []
    for split in (data.train, data.validation, data.test):
        ((images, labels, valid),) = split.evaluation_batches(5)
        assert valid.all() and sorted(labels.tolist()) == [0, 1, 2, 3, 4]
        found += [image.tobytes() for image in images]
    assert len(set(found)) == 15


def test_a_test_split_is_cut_instead_of_the_data_sets_own() -> None:
    own, cut = load("digits"), load("digits", test_examples=100)
    assert (len(cut.train), len(cut.test), describe("digits", test_examples=100).test) == (1337, 100, 100)
    images = {image.tobytes() for image in own.train.images}
    assert {image.tobytes() for image in cut.test.images} < images
    assert training_labels("digits", test_examples=100).tolist() == cut.train.labels.tolist()


def test_without_augmentation_streamed_images_are_the_same_in_each_epoch(prepare: Any, photograph: Any) -> None:
    pytest.importorskip("grain")
    data_dir = prepare(
        "plants", features=_features(5), train=_photographs(photograph, 4, 4), test=_photographs(photograph, 1, 1)
    )
    arguments = {"data_dir": data_dir, "image_size": 8, "augment": False}
    data = load("plants", workers=0, **arguments)
    described = describe("plants", **arguments)
    assert data.augmentation == described.augmentation and (described.augmentation.pad, data.augmentation.flip) == (
        0,
        0,
    )
    ((central, _, _),) = data.train.evaluation_batches(4)
    for _, chosen, images, _ in islice(data.train.training_batches(seed=1, batch_size=4), 2):
        assert np.array_equal(images, central[chosen])
    varied = load("plants", data_dir=data_dir, image_size=8, workers=0)
    _, chosen, images, _ = next(varied.train.training_batches(seed=1, batch_size=4))
    assert not np.array_equal(images, central[chosen])


def test_images_of_sixteen_bits_are_equal_in_memory_and_streamed(prepare: Any) -> None:
    pytest.importorskip("grain")
    image = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8, 1)
    scaled = np.round(image / 257)
    splits = {"train": [(image, 0)], "test": [(image, 1)]}
    held = prepare("held", features=_features(2, shape=(8, 8, 1), dtype=np.uint16), **splits)
    assert np.array_equal(load("held", data_dir=held).train.images[0], scaled)
    # The file has 16 bits, the feature states 8.
    prepare("stated", features=_features(2, shape=(8, 8, 1)), **splits)
    assert np.array_equal(load("stated", data_dir=held).train.images[0], scaled)
    prepare("streamed", features=_features(2, dtype=np.uint16), **splits)
    streamed = load("streamed", data_dir=held, image_size=7, workers=0)
    ((images, _, _),) = streamed.test.evaluation_batches(1)
    assert np.array_equal(images[0], np.repeat(scaled[:7, :7], 3, axis=2))
