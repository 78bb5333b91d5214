"""Meshes of devices, and the shardings of batches and state on them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kd_local.errors import check_type

DATA = "data"
MODULE = "module"


def device_mesh(data: int = 1, module: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `module` groups of `data` devices. A batch is divided over the devices of a group, and goes from group
    to group. A single group is a mesh with the axis `data`; several groups have the axes `module` and `data`.

    >>> dict(device_mesh(data=2, module=2).shape)  # doctest: +SKIP
    {'module': 2, 'data': 2}

    If there are several processes, each has the same number of devices in every group, so that data moves from group to
    group within a process.

    Raises:
        ValueError: fewer than one device is requested, or more than exist, or a number that the processes do not
            divide.
    """
    for name, number in ((DATA, data), (MODULE, module)):
        check_type(name, number, int | np.integer, "use a whole number of devices")
    devices = jax.devices() if devices is None else devices
    asked = f"a mesh of {data} devices on the data axis" + (f" and {module} on the module axis" if module != 1 else "")
    there = f"{len(devices)} ({devices[0].platform})"
    if data < 1 or module < 1 or data * module > len(devices):
        most = f"1 to {len(devices)}" if module == 1 else f"{len(devices)} or fewer in all"
        raise ValueError(
            f"{asked}, but there are {there}: use {most}, or on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={max(data, 1) * max(module, 1)}"
        )
    processes = sorted({device.process_index for device in devices})
    if data % len(processes):
        raise ValueError(
            f"{asked}, but there are {there} in {len(processes)} processes: use a multiple of {len(processes)} for data"
        )
    each = data // len(processes)
    rows = []
    for process in processes:
        own = [device for device in devices if device.process_index == process][: module * each]
        if len(own) < module * each:
            raise ValueError(f"{asked}, but process {process} has {len(own)} devices, not {module * each}: use fewer")
        rows.append(np.asarray(own).reshape(module, each))
    grid = np.concatenate(rows, axis=1)
    if module == 1:
        return Mesh(grid[0], (DATA,), axis_types=(AxisType.Auto,))
    return Mesh(grid, (MODULE, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def groups(mesh: Mesh) -> tuple[Mesh, ...]:
    """The groups of devices through which a batch goes, each as a mesh with the axis `data`."""
    if MODULE not in mesh.axis_names:
        return (mesh,)
    return tuple(Mesh(row, (DATA,), axis_types=(AxisType.Auto,)) for row in mesh.devices)


def all_devices(mesh: Mesh) -> Mesh:
    """All devices of the mesh on one axis, `data`, for work that is not divided into modules, such as evaluation."""
    if MODULE not in mesh.axis_names:
        return mesh
    # The devices of one process are adjacent.
    return Mesh(mesh.devices.T.reshape(-1), (DATA,), axis_types=(AxisType.Auto,))


def on_every_device(mesh: Mesh) -> NamedSharding:
    """The sharding with a copy on each device, for parameters, statistics, optimizer state and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def over_the_batch(mesh: Mesh, batch: int) -> NamedSharding:
    """The sharding that divides the leading dimension over the devices.

    If `batch` is not divisible, as an epoch's last, smaller batch, each device has the whole batch.
    """
    return NamedSharding(mesh, PartitionSpec(DATA) if batch % mesh.shape[DATA] == 0 else PartitionSpec())


def batch_shardings(tensors: Any, mesh: Mesh, batch: int, *, stacked: bool = False) -> Any:
    """A sharding for each tensor of a batch: `over_the_batch`, or for a scalar a copy on each device.

    Args:
        tensors: a pytree of arrays or their shapes.
        batch: the leading dimension of all tensors that are not scalars.
        stacked: if True, the tensors are those of several batches, with an additional first axis.
    """
    replicated, divided = on_every_device(mesh), over_the_batch(mesh, batch)
    if stacked:
        divided = NamedSharding(mesh, PartitionSpec(None, *divided.spec))
    return jax.tree.map(lambda leaf: divided if len(leaf.shape) > stacked else replicated, tensors)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A pytree of `jax.ShapeDtypeStruct` with a sharding for each."""
    return jax.tree.map(
        lambda like, sharding: jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding), shapes, shardings
    )
