"""Reconstruction decoders: InfoPro's second local loss, which trains a module to keep information about the image.

Reference: Wang et al., "Revisiting locally supervised learning" (InfoPro, ICLR 2021); Yu et al., arXiv 2312.07636.
"""

import math
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from kd_local.models.convolution import Conv
from kd_local.models.layers import ConvNorm, DType
from kd_local.precision import at_least_float32
from kd_local.shapes import check_arrays


@dataclass(frozen=True)
class PixelScale:
    """The normalisation of the images: (image - mean) / std for each channel, on the scale 0 to 255.

    Attributes:
        mean: one number per channel.
        std: one number above 0 per channel.

    Raises:
        ValueError: the two have different lengths, a number is not finite, or a `std` is not above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if not self.mean or len(self.mean) != len(self.std) or not all(map(math.isfinite, numbers)):
            raise ValueError(f"mean {self.mean} and std {self.std}: give both with one finite number for each channel")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std}: use numbers above 0, on the scale 0 to 255")

    def restore(self, images: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """The images before normalisation, on the scale 0 to 1, in float32 or wider."""
        wide = at_least_float32(images.dtype)
        std, mean = (jnp.asarray(np.divide(x, 255), wide).reshape(1, 1, 1, -1) for x in (self.std, self.mean))
        return images.astype(wide) * std + mean


class Decoder(nn.Module):
    """Reconstructs the image from features. Returns the logits of pixel values in [0, 1].

    The features are resized bilinearly to the image's size. A 3x3 convolution to `width` channels follows, with bias,
    batch normalisation and ReLU, then a 3x3 convolution with bias to the image's channels.
    """

    width: int = 12
    dtype: DType = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch h w c"], images: Float[Array, "batch hi wi ci"], *, train: bool
    ) -> Float[Array, "batch hi wi ci"]:
        x = resize_bilinear(features, (images.shape[1], images.shape[2]))
        x = ConvNorm(self.width, use_bias=True, dtype=self.dtype, name="conv1")(x, train=train)
        return Conv(images.shape[3], use_bias=True, dtype=self.dtype, name="conv2")(x)


def reconstruction_loss(logits: Float[Array, "batch h w c"], images: Float[Array, "batch h w c"]) -> Float[Array, ""]:
    """Binary cross entropy between predicted pixels and images in [0, 1]: the mean over all pixels, in nats.

    Raises:
        ValueError: the two have other shapes, or are no maps.
    """
    check_arrays(logits=(logits, "float batch h w c"), images=(images, "float batch h w c"))
    return optax.losses.sigmoid_binary_cross_entropy(logits.astype(images.dtype), images).mean()


def resize_bilinear(x: Float[Array, "batch hx wx c"], size: tuple[int, int]) -> Float[Array, "batch h w c"]:
    """Bilinear interpolation to `(height, width)`, with aligned corners (PyTorch's `align_corners=True`)."""
    if x.shape[1:3] == size:
        return x
    rows, columns = (jnp.asarray(_interpolation(n, m), x.dtype) for n, m in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("oh,nhwc,pw->nopc", rows, x, columns)


def _interpolation(inputs: int, outputs: int) -> np.ndarray:
    position = np.arange(outputs) * ((inputs - 1) / max(outputs - 1, 1))
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(inputs)))
