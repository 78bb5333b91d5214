"""Tiny networks, variables, data and batches. Tests compile more than they compute, so few blocks matter most."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from kd_local.data import Augmentation, Data, from_arrays
from kd_local.models import resnet
from kd_local.networks import Network, Variables


def network(
    classes: int = 4, *, width: int = 4, dtype: DTypeLike | None = None, whole_network: bool = False
) -> Network:
    """Three blocks of a ResNet-8, a stem, a residual block, and a head; or all five, in three stages after the stem."""
    whole = resnet(8, classes=classes, widths=(width,) * 4, dtype=dtype)
    if whole_network:
        return whole
    return Network.of({name: whole[name] for name in ("stem", "stage1/0", "head")})


@cache
def variables(of: Network, seed: int = 0, shape: tuple[int, ...] = (8, 8, 3)) -> Variables:
    """Random weights as at the start of training, scales and variances around 1, biases and means around 0."""
    random = np.random.default_rng(seed)
    like = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def fill(path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return random.uniform(0.5, 1.5, x.shape).astype(x.dtype)
        if path[-1].key in ("bias", "mean"):
            return random.uniform(-0.1, 0.1, x.shape).astype(x.dtype)
        return (random.standard_normal(x.shape) * np.sqrt(2 / np.prod(x.shape[:-1]))).astype(x.dtype)

    return jax.tree.map_with_path(fill, jax.eval_shape(of.init, jax.random.key(0), like))


def data(
    train: int, test: int, *, validation: int = 0, augmentation: Augmentation | None = None, seed: int = 0
) -> Data:
    """Grey images of 8x8 in four classes: the class of an image is its brightest quarter."""
    random = np.random.default_rng(seed)
    count = train + validation + test
    labels = np.arange(count) % 4
    images = random.integers(0, 100, (count, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 100
    images = images.astype(np.uint8)
    first, rest = slice(0, train + validation), slice(train + validation, None)
    splits = ((images[part], labels[part]) for part in (first, rest))
    return from_arrays(*splits, classes=4, validation_examples=validation, augmentation=augmentation)


def batch(
    size: int = 6, *, shape: tuple[int, ...] = (8, 8, 3), classes: int = 5, seed: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Normal noise and the labels 0, 1, ... in turn."""
    images = np.random.default_rng(seed).standard_normal((size, *shape), np.float32)
    return jnp.asarray(images), jnp.arange(size, dtype=jnp.int32) % classes
