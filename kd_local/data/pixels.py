"""Converts images of 16 bits and encoded images to pixels of 8 bits with the channels last."""

import io

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

_PER_STEP = 257  # 65535 / 255
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def eight_bits(pixels: UInt16[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Pixels from 0 to 65535 scaled to 0 to 255: x / 257, rounded.

    >>> eight_bits(np.array([0, 128, 129, 65535], np.uint16)).tolist()
    [0, 0, 1, 255]
    """
    return ((pixels.astype(np.uint32) + _PER_STEP // 2) // _PER_STEP).astype(np.uint8)


def rgb(image: Image.Image) -> Image.Image:
    """The image in RGB. Grey levels of 16 bits are scaled, see `eight_bits`. Pillow reads 16-bit colours as 8 bits.

    Raises:
        ValueError: the pixels are integers of 32 bits or floats.
    """
    image = _scaled(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(encoded: bytes, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an encoded image.

    For 3 channels the result is RGB, see `rgb`. The colours of a palette are looked up. Any other image keeps its
    channels, whose number may differ from `channels`.

    Raises:
        ValueError: see `rgb`.
        Exception: an error of Pillow for bytes that are not an image.
    """
    with Image.open(io.BytesIO(encoded)) as opened:
        image = rgb(opened) if channels == 3 else _scaled(opened)
        if image.mode in ("1", "P", "PA"):
            image = image.convert(_MODES.get(channels, "RGB"))
        pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def check_channels_last(shape: tuple[int, ...], what: str = "images") -> None:
    """Checks that a shape is `[..., h, w, c]`. It is taken for `[..., c, h, w]` if c is not 1 to 4, but h is 1, 3 or 4.

    Raises:
        ValueError: the channels come first.
    """
    height, _, channels = shape[-3:]
    if channels not in _MODES and height in (1, 3, 4):
        raise ValueError(
            f"{what} have shape {tuple(shape)}, channels first: use [n, h, w, c], np.moveaxis(images, -3, -1)"
        )


def check_image_shape(shape: object) -> None:
    """Check that an argument is the shape of an image, `(height, width, channels)`.

    Raises:
        ValueError: it is something else, such as the shape of a batch.
    """
    sizes = shape if isinstance(shape, tuple | list) else ()
    if len(sizes) != 3 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"shape is {shape!r}: use height, width and channels of an image, such as (32, 32, 3)")


def _scaled(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"its pixels are {kind}: use images of 8 or 16 bits")
    return Image.fromarray(eight_bits(np.asarray(image).astype(np.uint16))) if image.mode in _SIXTEEN_BITS else image
