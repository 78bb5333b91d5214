"""Data sets from arrays."""

from typing import Any

import numpy as np
import pytest

from kd_local.data import Augmentation, from_arrays


def _arrays(n: int = 6, classes: int = 3, shape: Any = (4, 5, 2)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % classes


def test_from_arrays() -> None:
    train, test = _arrays(30), _arrays(4)
    data = from_arrays(train, test)
    assert (data.name, data.classes, data.validation) == ("arrays", 3, None)
    assert data.train.images is train[0] and data.train.labels.dtype == np.int32
    assert np.array_equal(data.test.labels, test[1])
    augmentation = data.augmentation
    assert (augmentation.pad, augmentation.flip) == (0, False)
    assert augmentation.mean == pytest.approx(train[0].mean(axis=(0, 1, 2)))
    assert augmentation.std == pytest.approx(train[0].std(axis=(0, 1, 2)))


def test_from_arrays_normalises_by_the_training_images_unless_given() -> None:
    data = from_arrays(_arrays(30), _arrays(4), train_examples=9, validation_examples=6, classes=7)
    assert data.validation is not None and data.classes == 7
    assert np.bincount(data.train.labels).tolist() == [3, 3, 3]
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2]
    assert data.augmentation.mean == pytest.approx(data.train.images.mean(axis=(0, 1, 2)))
    given = Augmentation(pad=1, mean=(1.0, 2.0), std=(3.0, 4.0))
    named = from_arrays(_arrays(), _arrays(), augmentation=given, name="mine")
    assert named.augmentation is given and named.name == "mine"


def test_arrays_of_sixteen_bits_are_scaled() -> None:
    images, labels = _arrays()
    deep = images.astype(np.uint16) * 257
    data = from_arrays((deep, labels), (deep + 100, labels))
    assert np.array_equal(data.train.images, images) and data.test.images.dtype == np.uint8
    with pytest.raises(ValueError, match=r"train images are uint16 and none is above \d+: .* images.astype\('uint8'\)"):
        from_arrays((images.astype(np.uint16), labels), (deep, labels))


def test_a_test_split_is_cut_from_arrays() -> None:
    data = from_arrays(_arrays(30), None, test_examples=6, validation_examples=3, train_examples=9)
    assert data.validation is not None
    splits = (data.train, data.validation, data.test)
    assert [np.bincount(split.labels).tolist() for split in splits] == [[3] * 3, [1] * 3, [2] * 3]
    assert len({image.tobytes() for split in splits for image in split.images}) == 18
    for test, number in ((None, 0), (_arrays(), 6)):
        with pytest.raises(ValueError, match=f"test_examples is {number} and test is .*given: give the images"):
            from_arrays(_arrays(30), test, test_examples=number)


def test_channel_of_one_value_is_not_scaled() -> None:
    images, labels = _arrays()
    images[..., 1] = 200
    augmentation = from_arrays((images, labels), _arrays()).augmentation
    assert augmentation.mean[1] == 200.0 and augmentation.std[1] == 1.0


IMAGES, LABELS = _arrays()


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("train", "arguments", "text"),
    [
        ((IMAGES[..., 0], LABELS), {}, r"train images have shape \(6, 4, 5\): use \[n, h, w, c\]"),
        ((IMAGES / 255, LABELS), {}, "train images are float64: use uint8 from 0 to 255"),
        (
            (IMAGES, LABELS[:, None]),
            {},
            r"train labels have shape \(6, 1\): use \[n\], for one-hot",
        ),
        ((IMAGES, LABELS * 1.0), {}, "train labels are float64: use whole numbers"),
        ((IMAGES, LABELS[:5]), {}, "train images and labels are 6 and 5: give equal numbers"),
        ((IMAGES[:0], LABELS[:0]), {}, r"shape \(0, 4, 5, 2\): give at least one example"),
        ((IMAGES, LABELS - 1), {}, "train labels are from -1 to 1: use 0 to classes - 1"),
        ((IMAGES, LABELS), {"classes": 2}, "label 2 with 2 classes: .* give classes=3 or more"),
        ((IMAGES[:, :3], LABELS), {}, r"train images are \(3, 5, 2\), but test images are \(4, 5, 2\)"),
        ((np.moveaxis(np.zeros((6, 32, 32, 3), np.uint8), -1, 1), LABELS), {}, "train images have .*, channels first"),
        ((IMAGES, LABELS), {"train_examples": 7}, "train_examples 7 of 6 training examples"),
        ((IMAGES, LABELS), {"validation_examples": 6}, "validation_examples 6 of 6 training"),
        (
            (IMAGES, LABELS),
            {"augmentation": Augmentation(mean=(1.0,), std=(1.0,))},
            "images have 2 channels, .* mean has 1",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(train: Any, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        from_arrays(train, (IMAGES, LABELS), **arguments)
