"""Random crops, flips and normalisation: from the uint8 images of a batch to the inputs of a network.

A batch has up to two views: the weak view, with crops and flips, and the strong view, with RandAugment after them.

Everything runs on the device, inside a compiled step. Each pixel of a crop is looked up in the image by its index, so
no padded or flipped copy is made.
"""

from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from kd_local.data.pixels import check_channels_last
from kd_local.data.randaugment import PUBLISHED, RandAugment, check_channels, randaugment
from kd_local.errors import check_type, unknown
from kd_local.precision import at_least_float32
from kd_local.ranges import Number, Switch

PAD = Number(0, 4096, whole=True, note="0 is no crop")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The random changes of images in training, and their normalisation.

    Attributes:
        padding: border of the image before the crop: `zero` is black, `reflect` mirrors the image without repeating its
            edge.
        pad: width of the border in pixels; 0 for no crop.
        flip: if True, each image is mirrored left to right with probability 1/2.
        mean, std: mean and standard deviation of each channel, on the scale 0 to 255.
        strong: the further changes of the strong view, for methods that read one.

    Raises:
        ValueError: an unknown padding, a negative pad, or `mean` and `std` without one number of the pixels' scale
            for each channel.
    """

    padding: Literal["reflect", "zero"] = "zero"
    pad: int = 0
    flip: bool = False
    mean: tuple[float, ...]
    std: tuple[float, ...]
    strong: RandAugment = PUBLISHED

    def __post_init__(self) -> None:
        if self.padding not in ("reflect", "zero"):
            raise unknown("padding", self.padding, ("reflect", "zero"))
        PAD.check("pad", self.pad)
        Switch().check("flip", self.flip)
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            check_type(name, numbers, tuple, "use a tuple with one number for each channel, such as (127.5,)")
            for number in numbers:
                check_type(f"{name} of a channel", number, Real, "use a number on the scale 0 to 255")
        check_type("strong", self.strong, RandAugment, "use RandAugment(n=2), or leave it out")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"mean {self.mean} and std {self.std}: give both with one number for each channel")
        if not all(0 <= mean <= 255 for mean in self.mean):
            raise ValueError(f"mean {self.mean}: use numbers from 0 to 255, the scale of the pixels")
        if not all(0.255 <= std <= 255 for std in self.std):
            raise ValueError(f"std {self.std}: use numbers from 0.255 to 255, on the scale of the pixels")


def check_shape(augmentation: Augmentation, shape: tuple[int, ...]) -> None:
    """Checks that images of shape `[..., h, w, c]` can be augmented.

    Raises:
        ValueError: the channels come first, the images have another number of channels than `mean`, or they are too
            small for reflect padding.
    """
    if len(shape) not in (3, 4):
        raise ValueError(f"images have shape {tuple(shape)}: use [n, h, w, c]")
    height, width, channels = shape[-3:]
    check_channels_last(shape)
    if channels != len(augmentation.mean):
        raise ValueError(
            f"images have {channels} channels, but the augmentation's mean has "
            f"{len(augmentation.mean)}: give mean and std with one number for each channel"
        )
    if augmentation.padding == "reflect" and augmentation.pad >= min(height, width):
        raise ValueError(
            f"images of {height}x{width} are too small for reflect padding of {augmentation.pad} pixels: "
            "use a smaller pad, or zero padding"
        )


@partial(jax.jit, static_argnums=(0, 2))
def normalise(
    augmentation: Augmentation, images: UInt8[Array, "n h w c"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "n h w c"]:
    """`(images - mean) / std` in `dtype`, computed in float32 or wider.

    Raises:
        ValueError: see `check_shape`.
    """
    check_shape(augmentation, images.shape)
    _check_pixels(images)
    wide = at_least_float32(dtype)
    mean = jnp.asarray(augmentation.mean, wide).reshape(1, 1, 1, -1)
    std = jnp.asarray(augmentation.std, wide).reshape(1, 1, 1, -1)
    return ((images.astype(wide) - mean) / std).astype(dtype)


def _check_pixels(images: Array) -> None:
    if images.dtype != jnp.uint8:
        raise ValueError(f"images are {images.dtype}: use pixels from 0 to 255, images.astype('uint8')")


def _look_up(padding: str, index: Int[Array, "n size"]) -> tuple[Int[Array, "n size"], Bool[Array, "n size"]]:
    # For positions from -pad to size - 1 + pad: the pixels of the image, and whether the position is inside the image.
    last = index.shape[1] - 1
    if padding == "reflect":
        index = last - jnp.abs(last - jnp.abs(index))
    return jnp.clip(index, 0, last), (index >= 0) & (index <= last)


@partial(jax.jit, static_argnums=0, static_argnames="dtype")
def augment(
    augmentation: Augmentation,
    images: UInt8[Array, "n h w c"],
    rng: PRNGKeyArray,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "n h w c"]:
    """Random crops of the padded images at the original size, randomly flipped and normalised.

    >>> crops = Augmentation(pad=1, mean=(127.5,), std=(64.0,))
    >>> augment(crops, jnp.zeros((2, 8, 8, 1), jnp.uint8), jax.random.key(0)).shape
    (2, 8, 8, 1)

    Each image has its own offset and flip. They depend on `rng` and the number of images, not on the sharding.

    Raises:
        ValueError: see `check_shape`.
    """
    return normalise(augmentation, _crops(augmentation, images, rng), dtype)


@partial(jax.jit, static_argnums=0, static_argnames="dtype")
def augment_strongly(
    augmentation: Augmentation,
    images: UInt8[Array, "n h w c"],
    rng: PRNGKeyArray,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "n h w c"]:
    """The strong view: random crops and flips as in `augment`, then `augmentation.strong`, then normalisation.

    Raises:
        ValueError: see `check_shape`; or the images are neither grey nor RGB.
    """
    check_channels(images.shape[-1])
    crop_rng, operation_rng = jax.random.split(rng)
    changed = randaugment(augmentation.strong, _crops(augmentation, images, crop_rng), operation_rng)
    return normalise(augmentation, changed, dtype)


def _crops(augmentation: Augmentation, images: UInt8[Array, "n h w c"], rng: PRNGKeyArray) -> UInt8[Array, "n h w c"]:
    check_shape(augmentation, images.shape)
    _check_pixels(images)
    n, height, width, _ = images.shape
    crop_rng, flip_rng = jax.random.split(rng)
    pad = augmentation.pad
    if pad:
        offsets = jax.random.randint(crop_rng, (n, 2), -pad, pad + 1, jnp.int32)
    else:
        offsets = jnp.zeros((n, 2), jnp.int32)
    rows = offsets[:, :1] + jnp.arange(height, dtype=jnp.int32).reshape(1, -1)
    columns = offsets[:, 1:] + jnp.arange(width, dtype=jnp.int32).reshape(1, -1)
    if augmentation.flip:
        flip = jax.random.bernoulli(flip_rng, jnp.float32(0.5), (n, 1))
        columns = jnp.where(flip, columns[:, ::-1], columns)
    rows, row_inside = _look_up(augmentation.padding, rows)
    columns, column_inside = _look_up(augmentation.padding, columns)

    # On a CPU, one gather of whole pixels is two to three times as fast as a slice of each image, and four to fifteen
    # times as fast as products with one-hot matrices. With vmap, the gather stays on the device that has the image.
    def pick(image: UInt8[Array, "h w c"], row: Int[Array, " h"], column: Int[Array, " w"]) -> UInt8[Array, "h w c"]:
        return image.at[row.reshape(-1, 1), column.reshape(1, -1)].get(mode="clip")

    crops = jax.vmap(pick)(images, rows, columns)
    if augmentation.padding == "zero" and pad:
        inside = row_inside[:, :, None, None] & column_inside[:, None, :, None]
        crops = jnp.where(inside, crops, jnp.zeros_like(crops))
    return crops
