"""Two-dimensional convolutions with gradients that are fast on the CPU too.

Three kinds of convolution have their own forms on the CPU. All are exact up to rounding. Other platforms use XLA's
forms.

- Filter gradients. XLA computes one convolution with the whole image as window and the batch as channels: a matrix
  product with a very long inner dimension, which is slow on the CPU. This file computes a sum over slices of the batch.
- Images smaller than the filter, also in the backward pass. XLA exchanges image and filter, and the CPU runs the result
  as a plain loop. This file computes a matrix product of patches.
- Grouped convolutions. The forward pass and both gradients are slow on the CPU. This file computes a depthwise
  convolution as a sum of shifted products, and any other grouped convolution as one convolution per group.

Times on two cores in float32, this file / XLA's form, with the version of JAX:
    3x3, 16 channels, 32x32, batch 128                      0.10: 7 to 8 / 21 ms         0.12: 7 to 8 / 12 ms
    3x3, 32 channels, 16x16, batch 128                      0.10: 6 / 19 ms              0.12: 5 / 9 ms
    training step, ResNet-32, batch 128                     0.10: .65 / 1.0 s            0.12: .57 / .82 s
    the same in 16 modules, images of 8x8, batch 64         0.10: .058 / .087 s          0.12: .046 / .103 s
    depthwise 3x3, 96 channels, 16x16, batch 64             0.12: 20 / 170 ms (stride 2: 5 / 150 ms)
    depthwise 3x3, 480 channels, 2x2, batch 64              0.12: 1.3 / 28 ms
    1x1, 240 to 60 channels in 3 groups, 16x16, batch 64    0.12: 33 / 240 ms

A matrix product of patches per slice was slower for large images: concatenating the patches costs more than the
product.

Not optimal yet: the filter gradient of 16 channels at 32x32 takes 1.5 times as long as its forward convolution (7.2 and
4.7 ms). A batch of at most 8 images (16 small ones) is a single slice. Forward-mode differentiation (jax.jvp) is not
defined.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from jax import lax
from jaxtyping import Array, Float

from kd_local.precision import at_least_float32
from kd_local.rematerialization import add_dependence

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv2d(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c_group features"],
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
) -> Float[Array, "n h_out w_out features"]:
    """Convolution of a batch of images, with the same zero padding on every side, as in PyTorch.

    Args:
        x: images.
        kernel: filters of the same floating dtype, which is also the dtype of the result.
        stride: stride of rows and columns. The output's height is (h + 2 * padding - kh) // stride + 1; its width is
            computed in the same way.
        padding: rows and columns of zeros; None: half of the filter's size, rounded down.
        groups: channels and features are divided into `groups` groups of consecutive ones, all of equal size. A group
            of features depends only on the same group of channels, so that c_group = c / groups.

    Raises:
        ValueError: ranks, dtypes or channels do not fit, or stride, padding or groups is out of range.
    """
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"images of shape {x.shape} and filters of shape {kernel.shape}: expected four axes each, "
            "(n, h, w, c) and (kh, kw, c, features); give a single image as x[None]"
        )
    check_groups(groups, x.shape[3], kernel.shape[3])
    if x.shape[3] != kernel.shape[2] * groups:
        raise ValueError(
            f"images have {x.shape[3]} channels, filters expect {kernel.shape[2] * groups}: the last axis of x "
            f"{x.shape} must equal the third axis of kernel {kernel.shape}"
            f"{f' times {groups} groups' if groups > 1 else ''}; are the images channels-first?"
        )
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"images are {x.dtype}, filters {kernel.dtype}: expected one floating dtype; cast with astype")
    if stride < 1:
        raise ValueError(f"stride {stride}: expected an integer >= 1; 1 keeps the resolution")
    if padding is not None and padding < 0:
        raise ValueError(f"padding {padding}: expected an integer >= 0, or None for half of the filter")
    kh, kw = kernel.shape[:2]
    pads = (kh // 2, kw // 2) if padding is None else (padding, padding)
    if x.shape[1] + 2 * pads[0] < kh or x.shape[2] + 2 * pads[1] < kw:
        raise ValueError(
            f"images of {x.shape[1]}x{x.shape[2]} with padding {pads[0]} are smaller than a {kh}x{kw} "
            "filter: use larger images, a smaller filter or more padding"
        )
    return _conv(stride, pads, x, kernel) if groups == 1 else _grouped(stride, pads, groups, x, kernel)


def check_groups(groups: int, channels: int, features: int) -> None:
    """Raises ValueError unless `groups` divides both channels and features."""
    if groups < 1 or channels % groups or features % groups:
        raise ValueError(
            f"groups is {groups} for {channels} channels and {features} features: expected a positive divisor of both, "
            f"the largest is {math.gcd(channels, features)}; 1 lets every feature see every channel"
        )


def _plain(stride: int, pads: tuple[int, int], x: Any, kernel: Any, groups: int = 1) -> Any:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(p, p) for p in pads],
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def shifted(
    x: Float[Array, "n h w c"], size: tuple[int, int], stride: int, pads: tuple[int, int], fill: float = 0.0
) -> list[Float[Array, "n h_out w_out c"]]:
    """The images shifted to each position of a window, with stride and padding: an array per position, in row order."""
    height, width = ((x.shape[i + 1] + 2 * pads[i] - size[i]) // stride + 1 for i in range(2))
    x = jnp.pad(x, [(0, 0), (pads[0], pads[0]), (pads[1], pads[1]), (0, 0)], constant_values=fill)
    rows = [x[:, i : i + stride * (height - 1) + 1 : stride] for i in range(size[0])]
    return [row[:, :, j : j + stride * (width - 1) + 1 : stride] for row in rows for j in range(size[1])]


def _from_patches(stride: int, pads: tuple[int, int], x: Any, kernel: Any) -> Any:
    kh, kw, c, features = kernel.shape
    return jnp.concatenate(shifted(x, (kh, kw), stride, pads), axis=3) @ kernel.reshape(kh * kw * c, features)


def _group_by_group(stride: int, pads: tuple[int, int], x: Any, kernel: Any, groups: int) -> Any:
    kh, kw, c_group, features = kernel.shape
    if c_group > 1 or features > groups:
        pairs = zip(jnp.split(x, groups, axis=3), jnp.split(kernel, groups, axis=3), strict=True)
        return jnp.concatenate([_conv(stride, pads, *pair) for pair in pairs], axis=3)
    wide = at_least_float32(x.dtype)
    factors = kernel.reshape(kh * kw, 1, 1, 1, features).astype(wide)
    terms = zip(shifted(x.astype(wide), (kh, kw), stride, pads), factors, strict=True)
    return functools.reduce(jnp.add, (place * factor for place, factor in terms)).astype(x.dtype)


def _smaller(image: Any, kernel: Any) -> bool:
    return image.shape[1] * image.shape[2] < kernel.shape[0] * kernel.shape[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(stride: int, pads: tuple[int, int], x: Any, kernel: Any) -> Any:
    plain = functools.partial(_plain, stride, pads)
    if not _smaller(x, kernel):
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=functools.partial(_from_patches, stride, pads), default=plain)


def _conv_forward(stride: int, pads: tuple[int, int], x: Any, kernel: Any) -> tuple[Any, Any]:
    return _conv(stride, pads, x, kernel), (x, kernel)


def _conv_backward(stride: int, pads: tuple[int, int], residuals: Any, g: Any) -> tuple[Any, Any]:
    x, kernel = residuals

    def transposed(convolution: Any, kernel: Any, g: Any) -> Any:
        return jax.linear_transpose(lambda x: convolution(stride, pads, x, kernel), x)(g)[0]

    def on_cpu(x: Any, kernel: Any, g: Any) -> tuple[Any, Any]:
        kernel_gradient = _kernel_gradient_in_slices(stride, pads, kernel.shape, x, g)
        # Frees x before its gradient, an array of the same size, is allocated.
        kernel = add_dependence(kernel_gradient, kernel)
        if _smaller(g, kernel):
            return transposed(_from_patches, kernel, g), kernel_gradient
        return _x_gradient(stride, pads, x.shape, kernel, g), kernel_gradient

    def elsewhere(x: Any, kernel: Any, g: Any) -> tuple[Any, Any]:
        kernel_gradient = jax.linear_transpose(lambda kernel: _plain(stride, pads, x, kernel), kernel)(g)[0]
        return transposed(_plain, kernel, g), kernel_gradient

    return lax.platform_dependent(x, kernel, g, cpu=on_cpu, default=elsewhere)


_conv.defvjp(_conv_forward, _conv_backward)


# A custom gradient: automatic differentiation would keep every shifted copy of the images for the backward pass.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _grouped(stride: int, pads: tuple[int, int], groups: int, x: Any, kernel: Any) -> Any:
    on_cpu, elsewhere = (functools.partial(form, stride, pads, groups=groups) for form in (_group_by_group, _plain))
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def _grouped_forward(stride: int, pads: tuple[int, int], groups: int, x: Any, kernel: Any) -> tuple[Any, Any]:
    return _grouped(stride, pads, groups, x, kernel), (x, kernel)


def _grouped_backward(stride: int, pads: tuple[int, int], groups: int, residuals: Any, g: Any) -> tuple[Any, Any]:
    def gradients(form: Any, x: Any, kernel: Any, g: Any) -> tuple[Any, Any]:
        return jax.vjp(functools.partial(form, stride, pads, groups=groups), x, kernel)[1](g)

    on_cpu, elsewhere = (functools.partial(gradients, form) for form in (_group_by_group, _plain))
    return lax.platform_dependent(*residuals, g, cpu=on_cpu, default=elsewhere)


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _x_gradient(stride: int, pads: tuple[int, int], shape: tuple[int, ...], kernel: Any, g: Any) -> Any:
    # In the layout of XLA's fast CPU routine, see `add_slice`: the transpose of `_plain` is in another one.
    window = [
        (size - 1 - p, image + p - stride * (out - 1) - 1)
        for p, size, image, out in zip(pads, kernel.shape[:2], shape[1:3], g.shape[1:3], strict=True)
    ]
    kernel = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    dilation = (stride, stride)
    return lax.conv_general_dilated(g, kernel, (1, 1), window, lhs_dilation=dilation, dimension_numbers=_DIMENSIONS)


def _kernel_gradient_in_slices(stride: int, pads: tuple[int, int], shape: tuple[int, ...], x: Any, g: Any) -> Any:
    kh, kw, c, features = shape
    # Fastest in measurements: an inner dimension of about 16384, with 8 to 16 images.
    images = min(16, max(8, 16384 // (g.shape[1] * g.shape[2])))
    slices = -(-x.shape[0] // images)
    if missing := -x.shape[0] % slices:
        x, g = (jnp.pad(a, [(0, missing), (0, 0), (0, 0), (0, 0)]) for a in (x, g))
    window = [
        (p, size + stride * (out - 1) - image - p)
        for p, size, out, image in zip(pads, (kh, kw), g.shape[1:3], x.shape[1:3], strict=True)
    ]
    accumulator = jnp.float64 if x.dtype == jnp.float64 else jnp.float32

    def one_of(images: Any, i: Any) -> Any:
        # Slice i has the images i, i + slices, i + 2 slices, ..., so that each device keeps its images if the batch is
        # sharded. The reshape is inside the loop, because outside the compiler recomputes the images in the new shape.
        images = images.reshape(-1, slices, *images.shape[1:])
        return lax.dynamic_index_in_dim(images, i, 1, keepdims=False).astype(accumulator)

    def add_slice(total: Any, i: Any) -> tuple[Any, None]:
        # XLA's fast CPU routine needs a certain layout; without it a convolution is 50 times slower. Inside a scan XLA
        # does not change the layout, so the convolution is written in it: batch as channels.
        product = lax.conv_general_dilated(
            one_of(x, i).transpose(3, 1, 2, 0),
            one_of(g, i).transpose(1, 2, 0, 3),
            (1, 1),
            window,
            rhs_dilation=(stride, stride),
            dimension_numbers=_DIMENSIONS,
        )
        return total + product, None

    total = jnp.zeros((c, kh, kw, features), accumulator)
    # unroll=2, so that each of two cores has a slice: two cores that share one slice take 1.5 times as long.
    total, _ = lax.scan(add_slice, total, jnp.arange(slices), unroll=2)
    return total.transpose(1, 2, 0, 3).astype(x.dtype)


class Conv(nn.Module):
    """A convolution with parameters "kernel" (kernel_size, kernel_size, c / groups, features) and "bias" (features,).

    The padding is half of the filter, see `conv2d`. `dtype` is the compute dtype; None: the common dtype of input and
    parameters.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    groups: int = 1
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h_out w_out features"]:
        check_groups(self.groups, x.shape[-1], self.features)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias_init = self.bias_init or uniform_by_fan_in(math.prod(shape[:3]))
            bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv2d(x, kernel, stride=self.stride, groups=self.groups)
        return y if bias is None else y + bias.reshape(1, 1, 1, -1)


def uniform_by_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in): the initialisation of linear layers and of all biases."""
    bound = fan_in**-0.5

    def initialise(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise
