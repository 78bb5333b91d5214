"""The inputs of a step as functions of seed and step, for the loop and for the teacher's cache."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int64, PRNGKeyArray, UInt8

from kd_local.data import Augmentation, HostShare, augment, augment_strongly
from kd_local.parallel import DATA, move, on_every_device, over_the_batch, put_rows

# Differs from the numbers that `jax.random.split` folds into a key, so that the views have unrelated crops.
_STRONG = 0x5713

ExtraTensor = Callable[[int, Int64[np.ndarray, " batch"]], np.ndarray]
"""A function from `(step, positions of the batch's images in the training set)` to an extra tensor.

The result is a scalar, or a tensor whose leading dimension is the batch.
"""


def keys(seed: int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """`(key of all steps, key of the initialisation)` of a run."""
    rng, init_rng = jax.random.split(jax.random.key(seed))
    return rng, init_rng


def share_of(mesh: Mesh) -> HostShare:
    """The rows of each batch that this process loads."""
    return HostShare(jax.process_index(), jax.process_count(), mesh.shape[DATA])


def batch_view(
    augmentation: Augmentation,
    mesh: Mesh,
    rng: PRNGKeyArray,
    step: int,
    images: UInt8[np.ndarray, "rows h w c"],
    batch: int,
    *,
    strong: bool = False,
) -> Float[Array, "batch h w c"]:
    """A view of a batch, augmented and normalised.

    Args:
        augmentation: the augmentation of the training images.
        mesh: the devices for the batch.
        rng: the key of all steps, on every device of the mesh.
        step: the step, from 0.
        images: this process's rows of the batch, see `share_of`.
        batch: number of images of all processes together.
        strong: True for the strong view, False for the weak one.
    """
    batched = over_the_batch(mesh, batch)
    raw = put_rows(images, mesh, batch)
    number = move(np.uint32(step), on_every_device(mesh))
    if strong:
        return _strong_view(augmentation, batched, raw, rng, number)
    return _augmented(augmentation, batched, raw, rng, number)[0]


def augmented(
    augmentation: Augmentation,
    batched: NamedSharding,
    images: UInt8[Array, "batch h w c"],
    rng: PRNGKeyArray,
    step: Array,
) -> tuple[Float[Array, "batch h w c"], PRNGKeyArray]:
    """`(augmented and normalised batch, key of the step)`; for use within a compiled function."""
    rng, augment_rng = jax.random.split(jax.random.fold_in(rng, step))
    return jax.lax.with_sharding_constraint(augment(augmentation, images, augment_rng), batched), rng


def strong_view(
    augmentation: Augmentation,
    batched: NamedSharding,
    images: UInt8[Array, "batch h w c"],
    rng: PRNGKeyArray,
    step: Array,
) -> Float[Array, "batch h w c"]:
    """The strong view of a batch, with crops and flips of its own; for use within a compiled function."""
    _, augment_rng = jax.random.split(jax.random.fold_in(rng, step))
    strong = augment_strongly(augmentation, images, jax.random.fold_in(augment_rng, _STRONG))
    return jax.lax.with_sharding_constraint(strong, batched)


_augmented = jax.jit(augmented, static_argnums=(0, 1))
_strong_view = jax.jit(strong_view, static_argnums=(0, 1))
