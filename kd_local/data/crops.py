"""Crops of encoded images of any size, as ImageNet is trained and evaluated on: from the bytes of a file to pixels.

Everything runs on the CPU, with Pillow, and an image is decoded no larger than its crop needs.
"""

import io
import math

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

SCALE = (0.08, 1.0)
"""Of the area of a crop, as a share of that of the image."""

RATIO = (3 / 4, 4 / 3)
"""Of the width of a crop, to its height."""

ATTEMPTS = 10

_Box = tuple[int, int, int, int]


def random_box(width: int, height: int, uniform: Float64[np.ndarray, "attempts 4"]) -> _Box:
    """Left, top, width and height of a random part of an image, in pixels.

    Its area is uniform in `SCALE`, the logarithm of its width to height uniform in that of `RATIO`. If no attempt fits
    into the image, it is the largest central part of a ratio within `RATIO`.

    Args:
        width, height: of the image.
        uniform: random numbers from 0 to below 1: of each attempt those of area, ratio, top and left.

    Reference:
        Szegedy et al., "Going deeper with convolutions" (arXiv 1409.4842), section 6; as torchvision's
        RandomResizedCrop does it.
    """
    low, high = map(math.log, RATIO)
    for of_area, of_ratio, of_top, of_left in uniform.tolist():
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * of_area)
        ratio = math.exp(low + (high - low) * of_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(of_left * (width - w + 1)), int(of_top * (height - h + 1)), w, h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def random_crop(
    encoded: bytes, size: int, uniform: Float64[np.ndarray, "attempts 4"]
) -> UInt8[np.ndarray, "size size 3"]:
    """A random part of an image (see `random_box`), resized to a square by bilinear interpolation.

    A JPEG whose crop is at least twice as large as the square, in both directions, is decoded at a half, a quarter or
    an eighth of its size, whichever leaves the crop no smaller than the square. That is several times as fast, and
    what it changes is small beside what the crop itself does: the mean over the pixels that are joined is taken by the
    decoder in part.

    Raises:
        Exception: whatever Pillow raises for bytes that are no image.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        left, top, w, h = random_box(width, height, uniform)
        # So large the whole must be decoded at least.
        drafted = image.draft(None, (-(-width * size // w), -(-height * size // h)))
        scale = round(width / drafted[1][2]) if drafted else 1
        right, bottom = min((left + w) / scale, image.width), min((top + h) / scale, image.height)
        # Nothing outside of the crop has part in it, as it would if Pillow were given the whole image and the box.
        outer = math.floor(left / scale), math.floor(top / scale), math.ceil(right), math.ceil(bottom)
        inner = left / scale - outer[0], top / scale - outer[1], right - outer[0], bottom - outer[1]
        crop = _rgb(image.crop(outer))
        return np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR, box=inner))


def central_crop(encoded: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The central square of an image whose shorter side is resized, by bilinear interpolation, to 8/7 of the square's.

    That is 256 for a square of 224. JPEGs are decoded at their full size: these pixels are what others evaluate on.

    Raises:
        Exception: whatever Pillow raises for bytes that are no image.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        shorter = round(size * 256 / 224)
        w, h = (int(shorter * side / min(width, height)) for side in (width, height))
        left, top = round((w - size) / 2), round((h - size) / 2)
        # Only the square is computed, not all that is resized and then cut away.
        right, bottom = min((left + size) * width / w, width), min((top + size) * height / h, height)
        square = (left * width / w, top * height / h, right, bottom)
        return np.asarray(_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=square))


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")
