"""Arrays moved between groups of devices, whether one process sees all devices or several share them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


def move(tree: Any, shardings: Any) -> Any:
    """A pytree of arrays on other devices; at once, as the arrays become ready.

    Args:
        tree: arrays, of numpy or of JAX. Of several processes each holds the same ones where a single process could
            read them, and else its share: from one group of devices to another it stays in the process.
        shardings: one for all arrays, or one for each.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    each = jax.tree.map(lambda _: shardings, tree) if isinstance(shardings, NamedSharding) else shardings
    return jax.tree.map(_move, tree, each)


def _move(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(_move(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
        if not leaf.is_fully_addressable:
            return _between_groups(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _between_groups(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Each device's part to the device at the same place in the other group."""
    place = {device: i for i, device in enumerate(leaf.sharding.mesh.devices.flat)}  # type: ignore[attr-defined]
    target = list(sharding.mesh.devices.flat)
    if leaf.is_fully_replicated != sharding.is_fully_replicated:
        raise ValueError(f"an array of {leaf.sharding} cannot go to {sharding}: both divided or neither")
    parts = [jax.device_put(shard.data, target[place[shard.device]]) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)
