"""How well a network does on data that it was not trained on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from kd_local.contract import Method, State, Taught
from kd_local.data import Augmentation, Data, evaluation_batches, normalise
from kd_local.parallel import over_the_batch


def evaluate(method: Method, state: State, data: Data, *, batch_size: int, mesh: Mesh) -> dict[str, float]:
    """Loss and accuracy on the test split and, where there is one, the validation split: of what is deployed, as
    `test/loss`, and of every other exit, as `test/module03/loss`."""
    results: dict[str, float] = {}
    for name, split in (("validation", data.validation), ("test", data.test)):
        if split is None:
            continue
        totals: dict[str, np.ndarray] = {}
        for batch in evaluation_batches(split, batch_size):
            placed = jax.device_put(batch, over_the_batch(mesh, len(batch[0])))
            sums = jax.device_get(_evaluate_batch(method, data.augmentation, state, *placed))
            totals = {who: totals.get(who, 0) + both.astype(np.float64) for who, both in sums.items()}
        for who, both in totals.items():
            results[f"{name}/{who}loss"], results[f"{name}/{who}accuracy"] = (both / len(split)).tolist()
    return results


def compare(method: Taught, state: State, data: Data, *, batch_size: int, mesh: Mesh) -> tuple[float, float]:
    """Of the test images, the share that the teachers answer rightly, several of them by the mean of their logits, and
    the share on which what is deployed gives the same answer as they."""
    totals = np.zeros(2)
    for batch in evaluation_batches(data.test, batch_size):
        placed = jax.device_put(batch, over_the_batch(mesh, len(batch[0])))
        totals += jax.device_get(_compare_batch(method, data.augmentation, state, *placed))
    right, alike = (totals / len(data.test)).tolist()
    return right, alike


@partial(jax.jit, static_argnums=(0, 1))
def _compare_batch(
    method: Taught,
    augmentation: Augmentation,
    state: State,
    images: UInt8[Array, "batch h w c"],
    labels: Int[Array, " batch"],
    valid: Bool[Array, " batch"],
) -> Float[Array, "2"]:
    inputs = normalise(augmentation, images)
    teachers = jnp.stack([logits.astype(jnp.float32) for logits in method.taught(state, inputs).values()]).mean(axis=0)
    answer = jnp.argmax(teachers, axis=-1)
    right = answer.astype(labels.dtype) == labels
    alike = answer == jnp.argmax(method.logits(state, inputs), axis=-1)
    return jnp.stack([(valid & right).sum(), (valid & alike).sum()]).astype(jnp.float32)


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate_batch(
    method: Method,
    augmentation: Augmentation,
    state: State,
    images: UInt8[Array, "batch h w c"],
    labels: Int[Array, " batch"],
    valid: Bool[Array, " batch"],
) -> dict[str, Float[Array, "2"]]:
    inputs = normalise(augmentation, images)
    # What the two compute alike is computed once: the compiler sees to it.
    answers = {"": method.logits(state, inputs)}
    answers |= {f"{name}/": logits for name, logits in method.exits(state, inputs).items()}
    sums = {}
    for who, logits in answers.items():
        logits = logits.astype(jnp.float32)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
        sums[who] = jnp.stack([jnp.where(valid, losses, 0).sum(), (valid & correct).sum().astype(jnp.float32)])
    return sums
