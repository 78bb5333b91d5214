"""Evaluates networks on data that they were not trained on."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, UInt8

from kd_local.contract import HasTeachers, Method, State
from kd_local.costs import device_bytes
from kd_local.data import Augmentation, Data, Examples, normalise
from kd_local.errors import check_type
from kd_local.parallel import all_devices, move, on_every_device, put_rows
from kd_local.training.finite import check_finite
from kd_local.training.inputs import share_of
from kd_local.training.records import Scores, SplitScores


class Evaluator:
    """Evaluates states of a method on the test and validation split.

    Args:
        method: the method.
        data: the data set.
        batch_size: images of a batch, over all devices of the mesh.
        mesh: the devices.
        on_devices: whether the images are held on the devices. Then an evaluation of a split is one call of the
            devices. Only for images in memory.
    """

    def __init__(self, method: Method, data: Data, *, batch_size: int, mesh: Mesh, on_devices: bool = False) -> None:
        check_type("data", data, Data, "use data of load or from_arrays")
        self._method, self._augmentation = method, data.augmentation
        self._batch_size, self._mesh = batch_size, all_devices(mesh)
        splits = {"validation": data.validation, "test": data.test}
        self._splits = {name: split for name, split in splits.items() if split is not None}
        self._resident = (
            {name: _resident(split, batch_size, self._mesh) for name, split in self._splits.items()}
            if on_devices
            else None
        )

    @property
    def resident_bytes(self) -> int:
        """Bytes of the images on one device."""
        return device_bytes(self._resident)

    def __call__(self, state: State) -> dict[str, SplitScores]:
        """Scores of the deployed network and of every exit, by split: `test`, and `validation` if there is one.

        Raises:
            ValueError: the state is not finite.
        """
        here = gather(state, self._mesh)
        check_finite(here, of="the state to evaluate")
        results = {}
        for name, split in self._splits.items():
            if self._resident is None:
                sums_of = partial(_evaluate_batch, self._method, self._augmentation, here)
                sums = _sums_of_batches(sums_of, split, self._batch_size, self._mesh)
            else:
                replicated = on_every_device(self._mesh)
                batches = self._resident[name]
                sums = jax.device_get(
                    _evaluate_batches(self._method, self._augmentation, here, replicated, split.shape, *batches)
                )
            means = _means(sums, len(split))
            loss, accuracy = means["deployed"].tolist()
            results[name] = SplitScores(
                loss, accuracy, {key: Scores(*both.tolist()) for key, both in means["exits"].items()}
            )
        return results


def evaluate(method: Method, state: State, data: Data, *, batch_size: int, mesh: Mesh) -> dict[str, SplitScores]:
    """The scores of a state, see `Evaluator`."""
    return Evaluator(method, data, batch_size=batch_size, mesh=mesh)(state)


def compare(method: HasTeachers, state: State, data: Data, *, batch_size: int, mesh: Mesh) -> tuple[float, float]:
    """`(accuracy, agreement)` of the teachers on the test images, both in [0, 1].

    Several teachers predict by the mean of their logits. The agreement is the share of images for which the deployed
    network predicts the same class as the teachers.
    """
    mesh, here = all_devices(mesh), gather(state, mesh)
    sums_of = partial(_compare_batch, method, data.augmentation, here)
    sums = _sums_of_batches(sums_of, data.test, batch_size, mesh)
    accuracy, agreement = _means(sums, len(data.test)).tolist()
    return accuracy, agreement


def gather(state: State, mesh: Mesh) -> State:
    """The state without optimizer state, which no logits depend on, copied to every device."""
    parts = {name: {kind: tree for kind, tree in part.items() if kind != "opt_state"} for name, part in state.items()}
    return move(parts, on_every_device(all_devices(mesh)))


def _sums_of_batches(sums_of: Callable[..., Any], split: Examples, batch_size: int, mesh: Mesh) -> Any:
    """The results of `sums_of(images, labels, valid)`, a pytree, for each batch, along a first axis of batches."""
    replicated = on_every_device(mesh)
    with closing(split.evaluation_batches(batch_size, share_of(mesh))) as batches:
        sums: list[Any] = []
        flying = None
        for batch in batches:
            # The devices work on one batch while the next batch is prepared and copied to them.
            dispatched = sums_of(replicated, *put_rows(batch, mesh, batch_size))
            if flying is not None:
                sums.append(jax.device_get(flying))
            flying = dispatched
        sums.append(jax.device_get(flying))
    return jax.tree.map(lambda *each: np.stack(each), *sums)


def _means(sums: Any, examples: int) -> Any:
    """Means over the examples, from the sums of each batch."""
    return jax.tree.map(lambda each: np.sum(each, axis=0, dtype=np.float64) / examples, sums)


@partial(jax.jit, static_argnums=(0, 1, 3))
def _compare_batch(
    method: HasTeachers,
    augmentation: Augmentation,
    state: State,
    replicated: NamedSharding,
    images: UInt8[Array, "batch h w c"],
    labels: Int[Array, " batch"],
    valid: Bool[Array, " batch"],
) -> Float[Array, "2"]:
    inputs = normalise(augmentation, images)
    teachers = jnp.stack([logits.astype(jnp.float32) for logits in method.teacher_logits(state, inputs).values()]).mean(
        axis=0
    )
    predicted = jnp.argmax(teachers, axis=-1)
    correct = predicted.astype(labels.dtype) == labels
    agrees = predicted == jnp.argmax(method.logits(state, inputs), axis=-1)
    sums = jnp.stack([(valid & correct).sum(), (valid & agrees).sum()]).astype(jnp.float32)
    return jax.lax.with_sharding_constraint(sums, replicated)


@partial(jax.jit, static_argnums=(0, 1, 3))
def _evaluate_batch(
    method: Method,
    augmentation: Augmentation,
    state: State,
    replicated: NamedSharding,
    images: UInt8[Array, "batch h w c"],
    labels: Int[Array, " batch"],
    valid: Bool[Array, " batch"],
) -> dict[str, Any]:
    inputs = normalise(augmentation, images)
    # The compiler merges the common parts of the two.
    logits = {"deployed": method.logits(state, inputs), "exits": dict(method.exits(state, inputs))}
    sums = jax.tree.map(partial(_sums, labels, valid), logits)
    return jax.lax.with_sharding_constraint(sums, replicated)


@partial(jax.jit, static_argnums=(0, 1, 3, 4))
def _evaluate_batches(
    method: Method,
    augmentation: Augmentation,
    state: State,
    replicated: NamedSharding,
    shape: tuple[int, int, int],
    images: UInt8[Array, "steps batch pixels"],
    labels: Int[Array, "steps batch"],
    valid: Bool[Array, "steps batch"],
) -> dict[str, Any]:
    """The sums of each batch, along a first axis of batches."""
    sums_of = partial(_evaluate_batch, method, augmentation, state, replicated)
    return jax.lax.map(lambda batch: sums_of(batch[0].reshape(-1, *shape), *batch[1:]), (images, labels, valid))


def _resident(split: Examples, batch_size: int, mesh: Mesh) -> tuple[Array, ...]:
    """Images, labels and masks of all batches on the devices, along a first axis of batches.

    The pixels of an image are one axis, see `kd_local.training.image_source.OnDevices`.
    """
    with closing(split.evaluation_batches(batch_size, share_of(mesh))) as batches:
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
    pixels = stacked[0].reshape(*stacked[0].shape[:2], -1)
    images, labels, valid = put_rows((pixels, *stacked[1:]), mesh, batch_size, stacked=True)
    return images, labels, valid


def _sums(
    labels: Int[Array, " batch"], valid: Bool[Array, " batch"], logits: Float[Array, "batch k"]
) -> Float[Array, "2"]:
    """The sum of the losses of the valid examples, and the number of valid examples that are classified correctly."""
    logits = logits.astype(jnp.float32)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
    return jnp.stack([jnp.where(valid, losses, 0).sum(), (valid & correct).sum().astype(jnp.float32)])
