"""Pixels of 16 bits become pixels of 8, and channels come last."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kd_local.data.crops import central_crop, crop_numbers, random_crop
from kd_local.data.pixels import check_channels_last, decode, eight_bits

GREY = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def _encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_sixteen_bits_are_scaled_and_rounded() -> None:
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(eight_bits(every), np.round(every / 257))


def test_greys_of_sixteen_bits_are_equal_in_memory_and_streamed() -> None:
    scaled = np.round(GREY / 257)
    encoded = _encoded(Image.fromarray(GREY))
    assert np.array_equal(decode(encoded, 1), scaled[..., None])
    assert np.array_equal(decode(encoded, 3), np.repeat(scaled[..., None], 3, axis=2))
    # The same crops as of the image that has 8 bits from the start.
    eight = _encoded(Image.fromarray(scaled.astype(np.uint8)))
    assert np.array_equal(central_crop(encoded, 7), central_crop(eight, 7))
    uniform = crop_numbers(0, 0, 0)
    assert np.array_equal(random_crop(encoded, 7, uniform), random_crop(eight, 7, uniform))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_other_pixels_are_refused_by_name(dtype: Any) -> None:
    encoded = _encoded(Image.fromarray(GREY.astype(dtype)), "tiff")
    kind = "floats" if dtype == np.float32 else "integers of 32 bits"
    for read in (lambda: decode(encoded, 1), lambda: decode(encoded, 3), lambda: central_crop(encoded, 4)):
        with pytest.raises(ValueError, match=f"its pixels are {kind}: use images of 8 or 16 bits"):
            read()


def test_the_colours_of_a_palette_are_looked_up() -> None:
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    palette = colours.quantize(16)
    assert np.array_equal(decode(_encoded(palette), 3), np.asarray(palette.convert("RGB")))
    assert np.array_equal(decode(_encoded(palette), 4)[..., :3], np.asarray(palette.convert("RGB")))


def test_channels_are_kept() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    assert np.array_equal(decode(_encoded(Image.fromarray(pixels)), 4), pixels)
    assert decode(_encoded(Image.fromarray(pixels[..., :3])), 1).shape == (8, 8, 3)
    assert decode(_encoded(Image.fromarray(pixels[..., 0] > 99)), 1).max() == 255


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (5, 1, 28, 28), (3, 224, 160), (5, 4, 64, 64), (2, 5, 3, 8, 8)])
def test_channels_first_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images have shape .*, channels first: use .*np.moveaxis\(images, -3, -1\)"):
        check_channels_last(shape)


@pytest.mark.parametrize("shape", [(5, 32, 32, 3), (5, 1, 28, 1), (5, 4, 4, 2), (5, 64, 64, 13), (5, 3, 32, 3)])
def test_channels_last_are_accepted(shape: tuple[int, ...]) -> None:
    check_channels_last(shape)
