"""Moves arrays to devices and between groups of devices, in one process or in several that share the devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from kd_local.parallel.mesh import batch_shardings


def move(tree: Any, shardings: Any) -> Any:
    """A pytree of arrays on other devices. The call returns before the arrays are moved.

    Args:
        tree: numpy arrays, JAX arrays or PRNG keys. With several processes, an array whose devices all belong to this
            process must have equal values in all processes. If an array spans the processes, each process moves its
            own part.
        shardings: one sharding for all arrays, or one for each.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    each = jax.tree.map(lambda _: shardings, tree) if isinstance(shardings, NamedSharding) else shardings
    return jax.tree.map(_move, tree, each)


def put_rows(tree: Any, mesh: Mesh, batch: int, *, stacked: bool = False) -> Any:
    """A pytree of a batch's arrays on the devices of all processes, from the rows of this process.

    Args:
        tree: numpy arrays of this process's rows, or of the whole batch if each device computes the whole batch; and
            scalars, equal in all processes.
        mesh: the devices, see `batch_shardings`.
        batch: number of rows of all processes together.
        stacked: if True, the arrays are those of several batches, with an additional first axis.
    """
    shardings = batch_shardings(tree, mesh, batch, stacked=stacked)
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    # JAX's transfer guard counts this call as an implicit transfer. `device_put` would be an explicit one, but it would
    # compare the values of the processes each time.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(
            lambda rows, sharding: jax.make_array_from_process_local_data(
                sharding, rows, _whole(rows.shape, batch, stacked)
            ),
            tree,
            shardings,
        )


def _whole(shape: tuple[int, ...], batch: int, stacked: bool) -> tuple[int, ...]:
    """The shape of the whole array of which a process has its rows of this shape."""
    steps, rows = shape[:stacked], shape[stacked:]
    return (*steps, batch, *rows[1:]) if rows else steps


def _move(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(_move(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
        if not leaf.is_fully_addressable:
            if leaf.sharding.device_set == sharding.device_set:
                return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
            return _between_groups(leaf, sharding)
    host = np.asarray(jax.device_get(leaf))
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _between_groups(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Copies a whole array to each device, or each device's part to the device at the same position in the group."""
    shards = {shard.device: shard.data for shard in leaf.addressable_shards}
    if leaf.is_fully_replicated and sharding.is_fully_replicated:
        here = next(iter(shards.values()))
        parts = [jax.device_put(here, device) for device in sharding.mesh.local_devices]
    else:
        place = dict(zip(sharding.mesh.devices.flat, leaf.sharding.mesh.devices.flat, strict=True))  # type: ignore[attr-defined]
        parts = [jax.device_put(shards[place[device]], device) for device in sharding.mesh.local_devices]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)
