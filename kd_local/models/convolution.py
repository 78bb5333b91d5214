"""Two-dimensional convolutions whose gradients are fast on the CPU too.

XLA writes the gradient of a filter as one convolution whose window is the whole image and whose channels
are the batch: a matrix product with a very long inner dimension, which the CPU backend runs slowly.
Here, on the CPU only, it is a sum over pieces of the batch, exact up to rounding. And where an image (or the gradient
that becomes one in the backward pass) is smaller than the filter, XLA exchanges the two, and the CPU runs the result
in a plain loop: there the convolution is the matrix product of its patches. Grouped convolutions are slow in all three
directions; on the CPU a depthwise one is a sum of shifted products, and any other one convolution a group. Other
platforms keep XLA's own forms.

Measured on two cores at batch 128 in float32, jax 0.10 and 0.12: 3x3, 16 channels at 32x32, 7 to 8 ms for 21 and
12 ms; 32 at 16x16, 6 and 5 ms for 19 and 9; a training step of ResNet-32, .65 and .57 s for 1.0 and .82. Columns
of patches and one matrix product a piece were slower, since concatenating the columns costs more than the
product (which takes 3.5 ms for 16 channels). At 8x8, batch 64, whose last stage has images of 2x2: a training step of
ResNet-32 in 16 modules, .046 s for .103 (jax 0.12) and .058 for .087 (0.10). Output and both gradients of grouped
convolutions at batch 64 (jax 0.12): depthwise 3x3, 96 channels at 16x16, 20 ms for 170, with stride 2 5 ms for 150; 480
at 2x2, 1.3 ms for 28; 1x1, 240 to 60 channels in 3 groups at 16x16, 33 ms for 240.

Not optimal yet: the filter gradient of 16 channels at 32x32 still takes half as much again as its forward convolution
(7.2 ms for 4.7), and that of a batch of 8 images or fewer is a single piece (16 where they are small); forward-mode
differentiation (jax.jvp) is not defined.
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
    """Convolution of a batch of images, padded with the same number of zeros on every side, as in PyTorch.

    Takes images and filters of one floating dtype, and gives that dtype. `padding` None means half of
    the filter's size, rounded down. Height out is (h + 2 * padding - kh) // stride + 1, width likewise. With `groups`,
    channels and features are that many runs of equal length, and each run of features sees its run of channels only:
    c_group = c / groups.

    Raises ValueError for wrong ranks, different dtypes or channels, and an impossible stride, padding or groups.
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
            f"{x.shape} must equal the third of kernel {kernel.shape}"
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
    """Raises ValueError unless channels and features are both so many runs of equal length."""
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
    """What lies under each place of a window of that size, row by row, as the window moves over the padded images."""
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
        pieces = zip(jnp.split(x, groups, axis=3), jnp.split(kernel, groups, axis=3), strict=True)
        return jnp.concatenate([_conv(stride, pads, *piece) for piece in pieces], axis=3)
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

    def x_gradient(convolution: Any, kernel: Any, g: Any) -> Any:
        return jax.linear_transpose(lambda x: convolution(stride, pads, x, kernel), x)(g)[0]

    def on_cpu(x: Any, kernel: Any, g: Any) -> tuple[Any, Any]:
        kernel_gradient = _kernel_gradient_in_pieces(stride, pads, kernel.shape, x, g)
        # x is let go of before its gradient takes as much room again.
        kernel = add_dependence(kernel_gradient, kernel)
        return x_gradient(_from_patches if _smaller(g, kernel) else _plain, kernel, g), kernel_gradient

    def elsewhere(x: Any, kernel: Any, g: Any) -> tuple[Any, Any]:
        kernel_gradient = jax.linear_transpose(lambda kernel: _plain(stride, pads, x, kernel), kernel)(g)[0]
        return x_gradient(_plain, kernel, g), kernel_gradient

    return lax.platform_dependent(x, kernel, g, cpu=on_cpu, default=elsewhere)


_conv.defvjp(_conv_forward, _conv_backward)


# With a rule of its own, since otherwise every shifted copy of the images would be kept for the backward pass.
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


def _kernel_gradient_in_pieces(stride: int, pads: tuple[int, int], shape: tuple[int, ...], x: Any, g: Any) -> Any:
    kh, kw, c, features = shape
    # Measured best: an inner dimension of about 16384, but no fewer than 8 images and no more than 16.
    images = min(16, max(8, 16384 // (g.shape[1] * g.shape[2])))
    pieces = -(-x.shape[0] // images)
    if missing := -x.shape[0] % pieces:
        x, g = (jnp.pad(a, [(0, missing), (0, 0), (0, 0), (0, 0)]) for a in (x, g))
    window = [
        (p, size + stride * (out - 1) - image - p)
        for p, size, out, image in zip(pads, (kh, kw), g.shape[1:3], x.shape[1:3], strict=True)
    ]
    accumulator = jnp.float64 if x.dtype == jnp.float64 else jnp.float32

    def one_of(images: Any, i: Any) -> Any:
        # Every so many-th image: where the batch is sharded, each device keeps its own. Reshaped in here, since outside
        # of the loop the compiler computes a second copy of what gave the images, in that shape.
        images = images.reshape(-1, pieces, *images.shape[1:])
        return lax.dynamic_index_in_dim(images, i, 1, keepdims=False).astype(accumulator)

    def add_piece(total: Any, i: Any) -> tuple[Any, None]:
        # Inside a scan XLA no longer brings a convolution into the layout that its fast CPU routine wants
        # (and is 50 times slower without), so it is written in that layout here: batch as channels.
        piece = lax.conv_general_dilated(
            one_of(x, i).transpose(3, 1, 2, 0),
            one_of(g, i).transpose(1, 2, 0, 3),
            (1, 1),
            window,
            rhs_dilation=(stride, stride),
            dimension_numbers=_DIMENSIONS,
        )
        return total + piece, None

    total = jnp.zeros((c, kh, kw, features), accumulator)
    # Two at once: sharing one piece between two cores costs them half as much again as a piece each.
    total, _ = lax.scan(add_piece, total, jnp.arange(pieces), unroll=2)
    return total.transpose(1, 2, 0, 3).astype(x.dtype)


class Conv(nn.Module):
    """A convolution with parameters "kernel" (kernel_size, kernel_size, c / groups, features) and "bias" (features,).

    Maps (n, h, w, c) to (n, h_out, w_out, features) with padding of half the filter, see `conv2d`.
    `dtype` is the dtype of the computation; None: that to which input and parameters promote.
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
    """Uniform in +-1/sqrt(fan_in): the start of linear layers and of all biases."""
    bound = fan_in**-0.5

    def initialise(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise
