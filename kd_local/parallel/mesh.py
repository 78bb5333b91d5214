"""Meshes of devices and how batches and state lie on them."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"


def data_mesh(data: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, `data`, over that many devices: the batch is divided among them.

    Raises:
        ValueError: fewer than one device is asked for, or more than there are.
    """
    devices = jax.devices() if devices is None else devices
    if not 1 <= data <= len(devices):
        raise ValueError(
            f"a mesh of {data} devices on the data axis, but there are {len(devices)} ({devices[0].platform}): use 1 "
            f"to {len(devices)}, or on a CPU set XLA_FLAGS=--xla_force_host_platform_device_count={max(data, 1)}"
        )
    return Mesh(np.asarray(devices[:data]), (DATA,), axis_types=(AxisType.Auto,))


def on_every_device(mesh: Mesh) -> NamedSharding:
    """A copy on each device: parameters, statistics, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def over_the_batch(mesh: Mesh, batch: int) -> NamedSharding:
    """The leading dimension divided among the devices; where it does not divide (an epoch's last, smaller batch),
    each device computes the whole."""
    return NamedSharding(mesh, PartitionSpec(DATA) if batch % mesh.shape[DATA] == 0 else PartitionSpec())
