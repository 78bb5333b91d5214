"""The images of a run's batches: loaded from the host for each step, or held on the devices for the whole run.

Both give the same batches. Images on the devices save the copy from the host, and the host then sends only indices.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, Int32, Int64, UInt8

from kd_local.data import Data, Examples, HostShare, Split, batch_indices
from kd_local.parallel import DATA, batch_shardings, move, on_every_device, over_the_batch, put_rows, with_shardings

Rows = Callable[[Mesh, Any, Any], tuple[UInt8[Array, "batch h w c"], Int[Array, " batch"]]]
"""A pure function: `(devices of the batch, resident arrays, arrays of the batch) -> (images, labels)`."""


class HostBatch(NamedTuple):
    """A batch on the host.

    Attributes:
        step: the step, from 0.
        chosen: positions in the training set of all images of the batch.
        given: arrays for the devices, see `ImageSource.put`.
    """

    step: int
    chosen: Int64[np.ndarray, " batch"]
    given: Any


@runtime_checkable
class ImageSource(Protocol):
    """The source of the images and labels of batches."""

    @property
    def resident(self) -> Any:
        """Arrays that stay on the devices."""
        ...

    @property
    def rows(self) -> Rows:
        """Returns images and labels of a batch, within a compiled function."""
        ...

    def batches(self, *, seed: int, batch_size: int, start_step: int) -> Generator[HostBatch, None, None]:
        """Yields the batch of each step from `start_step` on, without end."""
        ...

    def shapes(self, batch: int, steps: int) -> Any:
        """Shapes and shardings of what the batches of a call of several steps give, along a first axis of steps."""
        ...

    def put(self, given: Any, batch: int, *, stacked: bool) -> Any:
        """Copies what batches give to the devices; `stacked`: the arrays of several steps, along a new first axis."""
        ...


@dataclass(frozen=True, eq=False)
class FromHost:
    """Loads the images of each batch on the host, from memory or from files.

    Attributes:
        examples: the training images.
        mesh: the devices of a batch.
        share: the rows of a batch that this process loads.
    """

    examples: Examples
    mesh: Mesh
    share: HostShare
    resident: tuple[()] = ()

    @property
    def rows(self) -> Rows:
        """See `ImageSource`."""
        return _given_rows

    def batches(self, *, seed: int, batch_size: int, start_step: int) -> Generator[HostBatch, None, None]:
        """See `ImageSource`."""
        stream = self.examples.training_batches(
            seed=seed, batch_size=batch_size, start_step=start_step, share=self.share
        )
        return _of_stream(stream)

    def shapes(self, batch: int, steps: int) -> Any:
        """See `ImageSource`."""
        images = jax.ShapeDtypeStruct((steps, batch, *self.examples.shape), np.uint8)
        given = images, jax.ShapeDtypeStruct((steps, batch), np.int32)
        return with_shardings(given, batch_shardings(given, self.mesh, batch, stacked=True))

    def put(self, given: Any, batch: int, *, stacked: bool) -> Any:
        """See `ImageSource`."""
        return put_rows(given, self.mesh, batch, stacked=stacked)


@dataclass(frozen=True, eq=False)
class OnDevices:
    """Holds all training images as uint8, divided over the devices. A batch is given by its indices.

    Attributes:
        mesh: the devices of a batch.
        examples: number of images.
        shape: height, width and channels of the images.
        resident: images and labels, padded with zeros to a multiple of the devices. The pixels of an image are one
            axis, since a TPU would pad the channels to a multiple of its tiles.
    """

    mesh: Mesh
    examples: int
    shape: tuple[int, int, int]
    resident: tuple[UInt8[Array | jax.ShapeDtypeStruct, "n pixels"], Int32[Array | jax.ShapeDtypeStruct, " n"]]

    @classmethod
    def of(cls, split: Split, mesh: Mesh) -> "OnDevices":
        """Copies the images to the devices."""
        missing = -len(split) % mesh.shape[DATA]
        images = split.images.reshape(len(split), -1)
        images = np.pad(images, ((0, missing), (0, 0))) if missing else images
        labels = np.pad(split.labels, (0, missing))
        return cls(mesh, len(split), split.shape, move((images, labels), over_the_batch(mesh, len(images))))

    @classmethod
    def shaped(cls, examples: int, shape: tuple[int, int, int], mesh: Mesh) -> "OnDevices":
        """The same with the shapes and shardings of `resident` in place of arrays, for compilation."""
        padded = examples + -examples % mesh.shape[DATA]
        arrays = jax.ShapeDtypeStruct((padded, math.prod(shape)), np.uint8), jax.ShapeDtypeStruct((padded,), np.int32)
        images, labels = with_shardings(arrays, batch_shardings(arrays, mesh, padded))
        return cls(mesh, examples, shape, (images, labels))

    @property
    def rows(self) -> Rows:
        """See `ImageSource`."""
        return _ChosenRows(self.shape)

    def batches(self, *, seed: int, batch_size: int, start_step: int) -> Generator[HostBatch, None, None]:
        """See `ImageSource`."""
        for step, chosen in batch_indices(self.examples, seed=seed, batch_size=batch_size, start_step=start_step):
            yield HostBatch(step, chosen, chosen.astype(np.int32))

    def shapes(self, batch: int, steps: int) -> Any:
        """See `ImageSource`."""
        return jax.ShapeDtypeStruct((steps, batch), np.int32, sharding=on_every_device(self.mesh))

    def put(self, given: Any, batch: int, *, stacked: bool) -> Any:
        """See `ImageSource`."""
        return move(given, on_every_device(self.mesh))


def _given_rows(mesh: Mesh, resident: Any, given: Any) -> tuple[UInt8[Array, "batch h w c"], Int[Array, " batch"]]:
    images, labels = given
    return images, labels


@dataclass(frozen=True)
class _ChosenRows:
    """See `Rows`. Equal instances share executables."""

    shape: tuple[int, int, int]

    def __call__(
        self, mesh: Mesh, resident: Any, chosen: Int32[Array, " batch"]
    ) -> tuple[UInt8[Array, "batch h w c"], Int[Array, " batch"]]:
        if mesh.shape[DATA] == 1:
            images, labels = (array[chosen] for array in resident)
        else:
            divided, of_batch = PartitionSpec(DATA), over_the_batch(mesh, len(chosen)).spec
            images, labels = jax.shard_map(
                partial(_gather, divided=of_batch == divided),
                mesh=mesh,
                in_specs=((divided, divided), PartitionSpec()),
                out_specs=of_batch,
                check_vma=False,
            )(resident, chosen)
        return images.reshape(-1, *self.shape), labels


def _gather(resident: tuple[Array, Array], chosen: Int32[Array, " batch"], *, divided: bool) -> tuple[Array, ...]:
    """On one device: the images that the others chose from its part, in exchange for its own rows of the batch."""
    size = len(resident[1])
    own = chosen - jax.lax.axis_index(DATA) * size
    here = (own >= 0) & (own < size)

    def exchange(part: Array) -> Array:
        mask = here.reshape(-1, *[1] * (part.ndim - 1))
        found = jnp.where(mask, part[jnp.clip(own, 0, size - 1)], jnp.zeros((), part.dtype))
        # Exactly one device has each image, so that the sum is that image.
        return jax.lax.psum_scatter(found, DATA, tiled=True) if divided else jax.lax.psum(found, DATA)

    images, labels = map(exchange, resident)
    return images, labels


def resident_bytes(examples: int, shape: tuple[int, int, int], devices: int) -> int:
    """Bytes of the images and labels on one of the devices that divide them."""
    height, width, channels = shape
    return -(-examples // devices) * (height * width * channels + np.dtype(np.int32).itemsize)


def image_source(examples: Examples, mesh: Mesh, share: HostShare, *, on_devices: bool) -> ImageSource:
    """The source of a run's training images.

    Args:
        examples: the training images.
        mesh: the devices of a batch.
        share: the rows of a batch that this process loads.
        on_devices: whether the images are held on the devices.

    Raises:
        ValueError: streamed images are to be held on the devices.
    """
    if not on_devices:
        return FromHost(examples, mesh, share)
    if not isinstance(examples, Split):
        raise ValueError("streamed images cannot be held on the devices: use on_devices=False")
    return OnDevices.of(examples, mesh)


def fit_on_devices(data: Data, mesh: Mesh) -> bool:
    """Whether all images are held on the devices by default: on accelerators, if they take at most a quarter of the
    memory of each device. A CPU has them in its memory already."""
    device, devices = mesh.local_mesh.devices.flat[0], mesh.shape[DATA]
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    if device.platform == "cpu" or not all(isinstance(split, Split) for split in splits):
        return False
    limit = (device.memory_stats() or {}).get("bytes_limit")
    needed = sum(resident_bytes(len(split), split.shape, devices) for split in splits)
    return limit is not None and needed <= limit // 4


def _of_stream(stream: Generator[Any, None, None]) -> Generator[HostBatch, None, None]:
    try:
        for step, chosen, images, labels in stream:
            yield HostBatch(step, chosen, (images, labels))
    finally:
        stream.close()
