"""Batch normalisation that stores only one array of its input's size, the input, for the backward pass.

Automatic differentiation of the formula stores several such arrays. With the gradient in this file a training step of
ResNet-32 needs a third less memory (batch 256 on a CPU, in total 619 MiB instead of 930). A step of one module needs a
quarter less. Neither is slower. Not optimal yet: a ReLU after the normalisation stores a mask.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kd_local.batch_division import devices_of_a_batch
from kd_local.precision import at_least_float32

Channels = Float[Array, " c"]


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias for each channel, the last axis of (n, h, w, c).

    In training mode, mean and variance are those of the batch, over all devices, and the running statistics are
    updated: running = momentum * running + (1 - momentum) * new. As in PyTorch, the new variance is the unbiased one,
    n / (n - 1) times the variance that normalises. In evaluation mode, mean and variance are the running statistics.

    Within `normalised_per_device`, mean and variance are those of each device's slice; the new statistics are the means
    over the slices. Statistics are computed in float32, or in the input's dtype if it is wider. Parameters `scale` and
    `bias` and the running statistics `mean` and `var` are float32 after `init`, and keep their dtype.

    Reference: Ioffe and Szegedy, "Batch normalization" (arXiv 1502.03167), algorithm 1 and section 3.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w c"]:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        wide = at_least_float32(x.dtype)
        scale, bias = scale.astype(wide), bias.astype(wide)
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value.astype(wide) + self.epsilon)
            y = _affine(x.astype(wide), factor, bias - running_mean.value.astype(wide) * factor)
            return y.astype(self.dtype or x.dtype)
        devices = devices_of_a_batch()
        if devices == 1:
            y, mean, var = _normalise(self.epsilon, x, scale, bias)
        else:
            each = x.reshape(devices, x.shape[0] // devices, *x.shape[1:])
            normalise = jax.vmap(partial(_normalise, self.epsilon), in_axes=(0, None, None))
            y, mean, var = normalise(each, scale, bias)
            y, mean, var = y.reshape(x.shape), mean.mean(axis=0), var.mean(axis=0)
        count = x.size // x.shape[-1] // devices
        for running, new in ((running_mean, mean), (running_var, var * (count / max(count - 1, 1)))):
            new = new.astype(running.value.dtype)
            running.value = self.momentum * running.value + (1 - self.momentum) * new
        return y.astype(self.dtype or x.dtype)


def _affine(x: Array, factor: Channels, offset: Channels) -> Array:
    return x * factor.reshape(1, 1, 1, -1) + offset.reshape(1, 1, 1, -1)


def _mean(x: Array) -> Channels:
    # One reduction over three axes is slow on the CPU.
    each = x.sum(axis=(1, 2))
    ones = jnp.ones(x.shape[:1], x.dtype)
    return jnp.dot(ones, each, precision=jax.lax.Precision.HIGHEST) / (x.size // x.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalise(epsilon: float, x: Any, scale: Any, bias: Any) -> Any:
    return _forward(epsilon, x, scale, bias)[0]


def _forward(epsilon: float, x: Any, scale: Any, bias: Any) -> tuple[Any, Any]:
    values = x.astype(scale.dtype)
    mean = _mean(values)
    var = jnp.maximum(_mean(values * values) - mean * mean, 0)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = _affine(values, inverse * scale, bias - mean * inverse * scale).astype(x.dtype)
    return (y, mean, var), (x, mean, inverse, scale)


def _backward(epsilon: float, kept: Any, gradients: Any) -> tuple[Any, Any, Any]:
    x, mean, inverse, scale = kept
    gradient, count = gradients[0].astype(scale.dtype), x.size // x.shape[-1]
    values = x.astype(scale.dtype)
    mean_gradient = _mean(gradient)
    # dx = scale / sigma (g - mean(g) - xhat mean(g xhat)), xhat = (x - mean) / sigma. Computed as g a + x b + c, with
    # mean(g xhat) from mean(g x), dx needs no centred copy of x.
    along = (_mean(gradient * values) - mean * mean_gradient) * inverse
    a = scale * inverse
    b = -a * inverse * along
    x_gradient = _affine(gradient, a, -a * mean_gradient - b * mean) + _affine(values, b, jnp.zeros_like(b))
    # The barrier makes XLA compute dx once, in the memory of g. Without it, the TPU compiler computes dx in each of the
    # two convolutions that read it, and keeps x and g for them.
    return jax.lax.optimization_barrier(x_gradient.astype(x.dtype)), along * count, mean_gradient * count


_normalise.defvjp(_forward, _backward)
