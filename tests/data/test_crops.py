"""Crops of encoded images, against numpy and Pillow."""

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_local.data.crops import ATTEMPTS, central_crop, random_box, random_crop


def _uniform(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((ATTEMPTS, 4))


def _pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes rows, then columns, by a triangle filter as wide as the source of one pixel, at least two pixels."""
    for axis in (0, 1):
        scale = image.shape[axis] / size
        centres = (np.arange(size) + 0.5) * scale
        distances = np.abs(np.arange(image.shape[axis]) + 0.5 - centres[:, None]) / max(scale, 1)
        weights = np.maximum(1 - distances, 0)
        weights /= weights.sum(axis=1, keepdims=True)
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


def test_random_box_is_the_first_attempt_that_fits() -> None:
    uniform = np.full((ATTEMPTS, 4), 0.5)
    # All of the area, three quarters as wide as high, would be 116 high; a quarter of the area fits.
    uniform[0] = (1 - 1e-9, 0, 0, 0)
    uniform[1] = ((0.25 - 0.08) / 0.92, 0.5, 0.25, 0.75)
    assert random_box(100, 100, uniform) == (int(0.75 * 51), int(0.25 * 51), 50, 50)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((100, 9), (44, 0, 12, 9)),
        ((9, 100), (0, 44, 9, 12)),
        ((12, 10), (0, 0, 12, 10)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_box_is_the_largest_central_one_if_no_attempt_fits(size: Any, box: Any) -> None:
    uniform = np.zeros((ATTEMPTS, 4))
    uniform[:, 0] = 1 - 1e-9
    # Wide boxes for high images and the other way round, and for the others one too wide.
    uniform[:, 1] = 1 - 1e-9 if size[0] <= size[1] else 0
    if size == (1, 1):
        uniform[:, :2] = 0  # less than half a pixel
    assert random_box(*size, uniform) == box


def test_boxes_are_spread_over_area_ratio_and_place() -> None:
    boxes = np.array([random_box(500, 375, _uniform(seed)) for seed in range(2000)], np.float64)
    left, top, width, height = boxes.T
    share, ratio = width * height / (500 * 375), width / height
    assert 0.078 < share.min() < 0.09 and share.max() > 0.95
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.345
    # Those that fit are smaller than all that are tried: the mean of these is 0.54.
    assert 0.42 < share.mean() < 0.46
    assert np.mean(np.log(ratio)) == pytest.approx(0, abs=0.05)
    free = (width < 490) & (height < 365)
    for place, room in ((left, 500 - width), (top, 375 - height)):
        assert (place >= 0).all() and (place <= room).all()
        assert np.mean(place[free] / room[free]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_random_crop_is_its_box_resized(seed: int, kind: str, photograph: Any) -> None:
    encoded, uniform = photograph(50, 40, kind=kind), _uniform(seed)
    left, top, width, height = random_box(50, 40, uniform)
    # Too large a square for any part of the image to be decoded at half its size.
    crop = random_crop(encoded, 30, uniform)
    assert crop.shape == (30, 30, 3) and crop.dtype == np.uint8
    expected = _resized(_pixels(encoded)[top : top + height, left : left + width].astype(np.float64), 30)
    assert np.abs(crop - expected).max() <= 1
    # Pillow gives exactly this for the part as an image of its own.
    part = Image.open(io.BytesIO(encoded)).crop((left, top, left + width, top + height))
    assert np.array_equal(crop, np.asarray(part.resize((30, 30), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("size", [(640, 480), (333, 517)])
def test_large_images_are_decoded_smaller_with_little_effect(
    size: Any, photograph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = photograph(*size)
    image = Image.fromarray(_pixels(encoded)).resize((size[0] // 8, size[1] // 8), Image.Resampling.BOX).resize(size)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=95)
    encoded = file.getvalue()
    decoded = []
    crop_of = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: (decoded.append(self.size), crop_of(self, box))[1])
    for seed in range(6):
        uniform = _uniform(seed)
        left, top, width, height = random_box(*size, uniform)
        small = random_crop(encoded, 24, uniform)
        factor = 2 ** min(3, int(math.log2(min(width, height) / 24)))
        assert factor > 1 and decoded.pop() == (-(-size[0] // factor), -(-size[1] // factor))
        part = Image.fromarray(_pixels(encoded)[top : top + height, left : left + width])
        difference = small.astype(np.float64) - np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR))
        assert np.abs(difference).mean() < 3
        # A crop that is shifted by one pixel differs more.
        moved = np.roll(small, 1, axis=1).astype(np.float64) - small
        assert np.abs(moved).mean() > 3 * np.abs(difference).mean()


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (60, 60), (20, 31), (7, 300)])
def test_central_crop_is_cut_from_the_resized_image(size: Any, photograph: Any) -> None:
    encoded = photograph(*size)
    crop = central_crop(encoded, 28)
    assert crop.shape == (28, 28, 3) and crop.dtype == np.uint8
    shorter = min(size)
    width, height = int(32 * size[0] / shorter), int(32 * size[1] / shorter)
    whole = np.asarray(Image.fromarray(_pixels(encoded)).resize((width, height), Image.Resampling.BILINEAR), np.float64)
    left, top = round((width - 28) / 2), round((height - 28) / 2)
    difference = np.abs(crop - whole[top : top + 28, left : left + 28])
    # Which direction Pillow resizes first depends on the size; between the two it rounds to whole levels.
    assert difference.max() <= 1 and difference.mean() < (0.01 if size in ((50, 40), (40, 50), (60, 60)) else 0.3)


def test_central_crop_by_hand() -> None:
    # Steps of 8 grey levels from left to right, twice as wide as the square needs: 128x64 becomes 64x32, of which the
    # columns 18 to 45 are left, each the mean, by a triangle, of columns whose middle is between 2c and 2c + 1.
    image = np.broadcast_to((np.arange(128) * 2).astype(np.uint8)[None, :, None], (64, 128, 3))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "png")
    assert central_crop(file.getvalue(), 28)[5, :, 1].tolist() == [2 * (2 * c) + 1 for c in range(18, 46)]


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "jpeg"), ("CMYK", "jpeg"), ("L", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png")]
)
def test_other_modes_become_rgb(mode: str, kind: str, photograph: Any) -> None:
    encoded = photograph(40, 40, mode=mode, kind=kind)
    image = Image.open(io.BytesIO(encoded))
    assert image.mode == mode
    expected = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR).crop((2, 2, 30, 30))
    difference = np.abs(central_crop(encoded, 28).astype(np.int32) - np.asarray(expected))
    assert difference.max() <= 1
    crop = random_crop(encoded, 28, _uniform(0))
    assert crop.shape == (28, 28, 3)
    if mode in ("L", "1"):
        assert (crop == crop[..., :1]).all()


@pytest.mark.parametrize("crop", [central_crop, lambda encoded, size: random_crop(encoded, size, _uniform(0))])
def test_bytes_that_are_not_an_image_are_an_error(crop: Any, photograph: Any) -> None:
    for damaged in (b"no image", photograph(50, 40)[:-200]):
        with pytest.raises(OSError):
            crop(damaged, 8)
