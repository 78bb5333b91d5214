"""Devices to compile for: those at hand, and TPUs that are not there.

XLA's TPU compiler runs on any machine that has the package `libtpu`, and tells what an executable needs. For a GPU
that is not there the same is not possible yet (jax issues 23971 and 28376).
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from kd_local.errors import unknown
from kd_local.parallel import device_mesh

# The smallest topology of each kind that its compiler accepts, by what libtpu calls it.
_TPUS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1", "v4": "v4:2x2x1"}
# Of one chip, from the vendor's documentation; compilations here are per chip, or per core where a chip has two.
_GIB = 2**30
_CAPACITY = {"v5e": 16 * _GIB, "v6e": 32 * _GIB, "v5p": 95 * _GIB, "v4": 32 * _GIB}
# At most; of operations in bfloat16, in which float32 convolutions are computed too unless asked otherwise.
_FLOPS_PER_SECOND = {"v5e": 197e12, "v6e": 918e12, "v5p": 459e12, "v4": 275e12}
_BYTES_PER_SECOND = {"v5e": 819e9, "v6e": 1638e9, "v5p": 2765e9, "v4": 1228e9}

TARGETS: tuple[str, ...] = ("local", *(f"tpu:{kind}" for kind in _TPUS))


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
        name: one of `TARGETS`.
        mesh: of its devices, with the axis `data`.
        devices: all that it has, for a mesh of another form.
        present: whether a step can be run on them.
        capacity: bytes of memory of one device, where known.
        flops_per_second, bytes_per_second: that one device computes, and moves to and from its memory, at most; where
            known.
    """

    name: str
    mesh: Mesh
    devices: tuple[jax.Device, ...]
    present: bool
    capacity: int | None
    flops_per_second: float | None = None
    bytes_per_second: float | None = None


def target(name: str = "local", *, devices: int = 1) -> Target:
    """The target of that name, with a mesh of so many of its devices.

    Raises:
        ValueError: an unknown target, a GPU that is not there, or more devices than it has.
        ModuleNotFoundError: a TPU without the package `libtpu`.
    """
    if name == "local":
        mesh = device_mesh(devices)
        stats = mesh.devices.flat[0].memory_stats() or {}
        return Target(name, mesh, tuple(jax.devices()), present=True, capacity=stats.get("bytes_limit"))
    if name == "gpu":
        if jax.default_backend() == "gpu":
            return target("local", devices=devices)
        raise ValueError(
            "target 'gpu', but there is no GPU here, and XLA cannot compile for one that is not there (jax issues "
            "23971 and 28376): run this on a machine that has one, or use target tpu:v5e, whose numbers come near"
        )
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    kind = name.removeprefix("tpu:")
    topology = _topology(kind)
    return Target(
        name,
        device_mesh(devices, devices=topology),
        tuple(topology),
        present=False,
        capacity=_CAPACITY[kind],
        flops_per_second=_FLOPS_PER_SECOND[kind],
        bytes_per_second=_BYTES_PER_SECOND[kind],
    )


def _topology(kind: str) -> list[jax.Device]:
    # Else libtpu asks the cloud's metadata server which TPU it is on, and waits for an answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # It is only compiled with, which several processes may do at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            f"target 'tpu:{kind}' needs XLA's TPU compiler, the package libtpu: pip install 'kd_local[tpu-compiler]', "
            "or pip install libtpu"
        )
    return list(topologies.get_topology_desc(platform="tpu", topology_name=_TPUS[kind]).devices)
