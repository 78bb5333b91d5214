"""Crops of encoded images of any size, as used for training and evaluation on ImageNet.

Everything runs on the CPU, with Pillow. An image is decoded at the smallest size that its crop allows.
"""

import io
import math

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

from kd_local.data.pixels import rgb

SCALE = (0.08, 1.0)
"""Range of the area of a crop, relative to the area of the image."""

RATIO = (3 / 4, 4 / 3)
"""Range of the ratio of a crop's width to its height."""

ATTEMPTS = 10

_Box = tuple[int, int, int, int]


def random_box(width: int, height: int, uniform: Float64[np.ndarray, "attempts 4"]) -> _Box:
    """Left, top, width and height of a random part of an image, in pixels.

    The area is uniform in `SCALE`, and the logarithm of the ratio is uniform between the logarithms of `RATIO`. If no
    attempt fits into the image, the result is the largest central part with a ratio within `RATIO`.

    Args:
        width, height: width and height of the image.
        uniform: random numbers in [0, 1), for each attempt: area, ratio, top, left.

    Reference:
        Szegedy et al., "Going deeper with convolutions" (arXiv 1409.4842), section 6, as in torchvision's
        RandomResizedCrop.
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


def crop_numbers(seed: int, epoch: int, place: int) -> Float64[np.ndarray, "attempts 4"]:
    """The random numbers of `random_crop` for one example in one epoch.

    They are outputs of Philox 4x64 with the key (seed, epoch) from the counter (0, 0, place, 1), where `place` is the
    example's index in the split. `epoch_order` uses other counters of this key.
    """
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, place, 1], np.uint64))
    # Keeps 53 bits, the precision of a float64.
    return ((philox.random_raw(ATTEMPTS * 4) >> np.uint64(11)) * 2.0**-53).reshape(ATTEMPTS, 4)


def random_crop(
    encoded: bytes, size: int, uniform: Float64[np.ndarray, "attempts 4"]
) -> UInt8[np.ndarray, "size size 3"]:
    """A random part of an image (see `random_box`), resized to a square by bilinear interpolation.

    If the crop of a JPEG is at least twice as large as the square in both directions, the image is decoded at 1/2, 1/4
    or 1/8 of its size, such that the crop is not smaller than the square. This is several times as fast. The decoder
    then averages pixels that would otherwise be averaged by the resizing.

    Raises:
        Exception: an error of Pillow for bytes that are not an image, or of `rgb`.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        left, top, w, h = random_box(width, height, uniform)
        # The smallest allowed size of the whole image.
        drafted = image.draft(None, (-(-width * size // w), -(-height * size // h)))
        scale = round(width / drafted[1][2]) if drafted else 1
        right, bottom = min((left + w) / scale, image.width), min((top + h) / scale, image.height)
        # Cropped first: Pillow would interpolate with pixels outside of the box.
        outer = math.floor(left / scale), math.floor(top / scale), math.ceil(right), math.ceil(bottom)
        inner = left / scale - outer[0], top / scale - outer[1], right - outer[0], bottom - outer[1]
        crop = rgb(image.crop(outer))
        return np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR, box=inner))


def central_crop(encoded: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The central square of an image, after its shorter side is resized to 8/7 of the square's side, bilinearly.

    For a square of 224 pixels the shorter side is 256. JPEGs are decoded at their full size, as in other
    implementations.

    Raises:
        Exception: an error of Pillow for bytes that are not an image, or of `rgb`.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = image.size
        shorter = round(size * 256 / 224)
        w, h = (int(shorter * side / min(width, height)) for side in (width, height))
        left, top = round((w - size) / 2), round((h - size) / 2)
        # Resizes only the square.
        right, bottom = min((left + size) * width / w, width), min((top + size) * height / h, height)
        square = (left * width / w, top * height / h, right, bottom)
        return np.asarray(rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=square))
