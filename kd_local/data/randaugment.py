"""RandAugment: random operations of Pillow on the uint8 images of a batch, on the device.

Everything runs inside a compiled step. An operation is a lookup table of 256 levels for each image and channel, or a
gather of pixels, or a blend with another image. Every image passes through all three, with parameters that change
nothing where its operation needs none: a batch in which each image chooses its own branch would compute all branches.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt8

from kd_local.choices.data import STRONG_VIEW
from kd_local.data.level_tables import histogram, look_up
from kd_local.data.strengths import LEVELS, NO_CHANGE, OPERATIONS, Strengths, strengths
from kd_local.ranges import check_arguments

_CUTOUT = (125, 123, 114)
_CUTOUT_GREY = 123
# Weights of red, green and blue in Pillow's grey level, in units of 2^-16.
_GREY = (19595, 38470, 7471)


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`n` random operations, one after another, and then a grey square (cutout).

    The operations and their ranges are those of FixMatch in the published code of MLKD and CRLD: autocontrast,
    brightness, color, contrast, equalize, identity, posterize, rotate, sharpness, shear in x and y, solarize, and
    translation in x and y. Each is as likely as the others, and may occur twice. Its strength is uniform in its range,
    see `kd_local.data.strengths`. Every operation gives the pixels of Pillow 13. (Autocontrast may differ by one
    level, where the exact value is a whole number.)

    The published code writes RandAugment(2, 10), but reads only n. Here m moves both ends of each range. At 10 it is
    the published range; at 5 its ends are half as far from no effect.

    Attributes:
        n: number of operations of each image.
        m: size of the ranges, above 0; 10 is the published size.
        cutout: if True, a square with sides of up to half the width is filled with the mean colour of CIFAR-10.

    Reference: Cubuk et al., "RandAugment" (arXiv 1909.13719); Sohn et al., "FixMatch" (arXiv 2001.07685), appendix D.

    Raises:
        ValueError: a number is out of range.
    """

    n: int = 2
    m: float = 10.0
    cutout: bool = True

    def __post_init__(self) -> None:
        check_arguments(STRONG_VIEW, n=self.n, m=self.m, cutout=self.cutout)


PUBLISHED = RandAugment()
"""The strong view of MLKD and CRLD, as their authors' code has it."""


def check_channels(channels: int) -> None:
    """Checks that images with this number of channels have a strong view.

    Raises:
        ValueError: they are neither grey nor RGB.
    """
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels: RandAugment takes grey images (1) or RGB (3)")


@partial(jax.jit, static_argnums=0)
def randaugment(settings: RandAugment, images: UInt8[Array, "n h w c"], rng: PRNGKeyArray) -> UInt8[Array, "n h w c"]:
    """Each image after `settings.n` random operations, and cutout.

    >>> randaugment(RandAugment(), jnp.zeros((2, 8, 8, 3), jnp.uint8), jax.random.key(0)).shape
    (2, 8, 8, 3)

    The choices depend on `rng` and the number of images, not on the sharding. All arithmetic is of integers, so that
    every compilation gives the same pixels.

    Cost of an operation: one scatter of all pixels for the histograms, two gathers of all pixels (on a TPU one, and 512
    comparisons for each pixel), and about 40 integer operations for each pixel.

    Raises:
        ValueError: the images are neither grey nor RGB.
    """
    count, height, width, channels = images.shape
    check_channels(channels)
    table = strengths(settings.m, height, width)
    operation_rng, level_rng, cutout_rng = jax.random.split(rng, 3)
    operations = jax.random.randint(operation_rng, (settings.n, count), 0, len(OPERATIONS), jnp.int32)
    levels = jax.random.randint(level_rng, (settings.n, count), 0, LEVELS, jnp.int32)
    images, _ = jax.lax.scan(lambda x, each: (operate(table, x, *each), None), images, (operations, levels))
    if settings.cutout:
        images = jax.vmap(cut_out)(images, jax.random.randint(cutout_rng, (count, 3), 0, LEVELS, jnp.int32))
    return images


def operate(
    table: Strengths, images: UInt8[Array, "n h w c"], operations: Int[Array, " n"], levels: Int[Array, " n"]
) -> UInt8[Array, "n h w c"]:
    """Applies one operation to each image.

    Args:
        table: the numbers of all operations, for images of this size.
        images: grey or RGB.
        operations: the operation of each image, as an index of `OPERATIONS`.
        levels: its strength, from 0 to `LEVELS` - 1.
    """
    return jax.vmap(partial(_operate, table))(images, operations, levels)


def _operate(
    table: Strengths, image: UInt8[Array, "h w c"], operation: Int[Array, ""], level: Int[Array, ""]
) -> UInt8[Array, "h w c"]:
    at = {name: operation == OPERATIONS.index(name) for name in OPERATIONS}
    channels = image.shape[-1]
    coefficients = jnp.asarray(table.affine)[jnp.asarray(table.affine_row)[operation], level]
    flat = _affine(image, coefficients).reshape(-1, channels).astype(jnp.int32)
    pixels = look_up(_new_levels(flat, table, at, level), flat).reshape(image.shape)

    other = jnp.where(at["contrast"], _mean_grey(pixels), 0)
    other = jnp.where(at["color"], _grey(pixels), other)
    other = jnp.where(at["sharpness"], _smooth(pixels), other)
    blended = at["brightness"] | at["contrast"] | at["color"] | at["sharpness"]
    factor = jnp.where(blended, jnp.asarray(table.factor)[level], NO_CHANGE)
    return ((other * NO_CHANGE + factor * (pixels - other)) // NO_CHANGE).astype(jnp.uint8)


def _new_levels(
    pixels: Int[Array, "pixels c"], table: Strengths, at: dict[str, Array], level: Int[Array, ""]
) -> Int[Array, "c 256"]:
    """The new level of each level, by channel."""
    channels = pixels.shape[-1]
    every = jnp.broadcast_to(jnp.arange(256, dtype=jnp.int32), (channels, 256))
    found = jnp.where(at["posterize"], every & jnp.asarray(table.posterize)[level], every)
    found = jnp.where(at["solarize"] & (every >= jnp.asarray(table.solarize)[level]), 255 - every, found)

    low, high = (bound(axis=0).reshape(-1, 1) for bound in (pixels.min, pixels.max))
    stretched = jnp.clip(255 * (every - low) // jnp.maximum(high - low, 1), 0, 255)
    found = jnp.where(at["autocontrast"] & (high > low), stretched, found)

    counts = histogram(pixels)
    below = jnp.cumsum(counts, axis=-1) - counts
    of_highest = jnp.where(every == high, counts, 0).sum(axis=-1, keepdims=True, dtype=jnp.int32)
    step = (len(pixels) - of_highest) // 255
    equal = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(at["equalize"] & (step > 0), equal, found)


def _affine(pixels: UInt8[Array, "h w c"], coefficients: Int[Array, "6"]) -> UInt8[Array, "h w c"]:
    """The pixel at a linear function of the position, in units of 2^-16; black outside of the image."""
    height, width, _ = pixels.shape
    row = jnp.arange(height, dtype=jnp.int32).reshape(-1, 1)
    column = jnp.arange(width, dtype=jnp.int32).reshape(1, -1)
    x, y = (
        (of_column * column + of_row * row + start) >> 16
        for of_column, of_row, start in (coefficients[:3], coefficients[3:])
    )
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = pixels.at[y, x].get(mode="clip")
    return jnp.where(inside[..., None], found, jnp.zeros_like(found))


def _grey(pixels: Int[Array, "h w c"]) -> Int[Array, "h w _"]:
    if pixels.shape[-1] == 1:
        return pixels
    weighted = pixels * jnp.asarray(_GREY, jnp.int32).reshape(1, 1, -1)
    return (weighted.sum(axis=-1, keepdims=True, dtype=jnp.int32) + (1 << 15)) >> 16


def _mean_grey(pixels: Int[Array, "h w c"]) -> Int[Array, ""]:
    grey = _grey(pixels)
    return (2 * grey.sum(dtype=jnp.int32) + grey.size) // (2 * grey.size)


def _smooth(pixels: Int[Array, "h w c"]) -> Int[Array, "h w c"]:
    """The mean over 3x3 pixels, the middle counted five times. Pixels at the border are not changed."""
    height, width, _ = pixels.shape
    if min(height, width) < 3:
        return pixels
    total = 4 * pixels[1:-1, 1:-1]
    for i in range(3):
        for j in range(3):
            total += pixels[i : height - 2 + i, j : width - 2 + j]
    return pixels.at[1:-1, 1:-1].set((2 * total + 13) // 26)


def cut_out(image: UInt8[Array, "h w c"], levels: Int[Array, "3"]) -> UInt8[Array, "h w c"]:
    """The image with a filled square.

    Args:
        image: grey or RGB.
        levels: of the square's side, and of its position in x and y, each from 0 to `LEVELS` - 1.
    """
    height, width, channels = image.shape
    odd = 2 * levels + 1  # in units of 1 / (2 LEVELS)
    # The side is u / 2 of the width for u = odd[0] / (2 LEVELS); the published code draws positions from 1 to the size.
    inside = jnp.ones((height, width), bool)
    for size, at, axis in ((width, odd[1], 1), (height, odd[2], 0)):
        centre = 8 * LEVELS * size - 4 * (size - 1) * at  # in units of 1 / (8 LEVELS)
        first = jnp.maximum(centre - width * odd[0], 0) // (8 * LEVELS)
        last = jnp.minimum(first + width * odd[0] // (4 * LEVELS), size)
        position = jnp.arange(size, dtype=jnp.int32)
        within = (position >= first) & (position <= last)
        inside &= jnp.expand_dims(within, 1 - axis)
    colour = jnp.asarray(_CUTOUT if channels == 3 else (_CUTOUT_GREY,), jnp.uint8)
    return jnp.where(inside[..., None], colour.reshape(1, 1, -1), image)
