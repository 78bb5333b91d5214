"""Parameters and optimizer state divided among the devices of the data axis, where each else holds a copy.

Reference: Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models" (SC 2020): of the
optimizer state its stage 1, of parameters too its stage 3. What gathers and scatters is the compiler's.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_local.parallel.mesh import DATA, on_every_device

SHARDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"nothing": (), "optimizer": ("opt_state",), "state": ("opt_state", "params")}
)
"""The collections of each part of the state that are divided, by the name of the choice."""

SMALLEST = 4096
"""Arrays of fewer elements stay whole: to gather them costs more than a copy."""


def part_shardings(part: Any, mesh: Mesh, shard: str) -> Any:
    """A sharding for each array of a part of the state. An array is divided along the longest of its dimensions that
    the number of devices divides.

    Args:
        part: `{"params": ..., "batch_stats": ..., "opt_state": ...}` of arrays or their shapes.
        shard: one of `SHARDED`.
    """
    names = SHARDED[shard]
    replicated = on_every_device(mesh)
    return {
        name: jax.tree.map(lambda leaf, name=name: _along(leaf, mesh) if name in names else replicated, tree)
        for name, tree in part.items()
    }


def _along(leaf: Any, mesh: Mesh) -> NamedSharding:
    devices = mesh.shape[DATA]
    dividing = [axis for axis, length in enumerate(leaf.shape) if length % devices == 0]
    if leaf.size < SMALLEST or not dividing:
        return on_every_device(mesh)
    axis = max(dividing, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))
