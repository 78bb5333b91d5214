"""The scans that come with the package, against those of scikit-learn."""

import numpy as np
import pytest

from kd_local.data.digits import read_digits


def test_sizes_and_range() -> None:
    for split, examples in (("train", 1437), ("test", 360)):
        images, labels = read_digits(split)
        assert images.shape == (examples, 8, 8, 1) and images.dtype == np.uint8
        assert labels.shape == (examples,) and labels.dtype == np.int32
        assert images.min() == 0 and images.max() == 255
        assert set(labels.tolist()) == set(range(10))


def test_same_as_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    selection = pytest.importorskip("sklearn.model_selection")
    digits = datasets.load_digits()
    places = selection.train_test_split(np.arange(1797), test_size=360, stratify=digits.target, random_state=0)
    for split, chosen in zip(("train", "test"), places, strict=True):
        images, labels = read_digits(split)
        assert np.array_equal(labels, digits.target[chosen])
        expected = np.floor(digits.images[chosen] * 255 / 16 + 0.5)
        assert np.array_equal(images[..., 0], expected)
