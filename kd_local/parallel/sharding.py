"""Divides parameters and optimizer state over the devices of the data axis, instead of a copy on each device.

Reference: Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models" (SC 2020). To
divide the optimizer state is its stage 1, to divide the parameters too its stage 3. The compiler inserts the
communication.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_local.choices.steps import SHARDED
from kd_local.parallel.mesh import DATA, on_every_device

SMALLEST = 4096
"""Arrays with fewer elements are not divided: gathering them would cost more than a copy."""


def part_shardings(part: Any, mesh: Mesh, shard: str) -> Any:
    """A sharding for each array of a part of the state.

    An array is divided along its longest dimension that is a multiple of the number of devices.

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
