"""Compilation targets: local devices, and TPUs and GPUs that are absent.

XLA's compilers for TPUs (in the package `libtpu`) and GPUs (in JAX's CUDA plugin) run on any machine, and report the
memory of executables.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from kd_local.choices.steps import TARGETS
from kd_local.errors import unknown
from kd_local.memory.gpus import GPUS, gpu_topology
from kd_local.parallel import device_mesh

# The smallest topology of each kind that the compiler accepts, under libtpu's name, and its name as an accelerator.
_TPUS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1", "v4": "v4:2x2x1"}
_ACCELERATORS = {"v5e": "v5litepod-4", "v6e": "v6e-4", "v5p": "v5p-8", "v4": "v4-8"}
# Values of one chip, from the vendor's documentation. A device is a chip, or one core of a chip with two cores.
_GIB = 2**30
_CAPACITY = {"v5e": 16 * _GIB, "v6e": 32 * _GIB, "v5p": 95 * _GIB, "v4": 32 * _GIB}
# Peak values for bfloat16, in which TPUs compute float32 convolutions by default.
_FLOPS_PER_SECOND = {"v5e": 197e12, "v6e": 918e12, "v5p": 459e12, "v4": 275e12}
_BYTES_PER_SECOND = {"v5e": 819e9, "v6e": 1638e9, "v5p": 2765e9, "v4": 1228e9}


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
        name: one of `TARGETS`.
        mesh: a mesh of the target's devices with the axis `data`.
        devices: all devices of the target, for other meshes.
        present: True if steps can run on the devices.
        capacity: memory of one device in bytes; None if it is not known.
        flops_per_second, bytes_per_second: peak speed of one device, and of its memory; None if not known.
    """

    name: str
    mesh: Mesh
    devices: tuple[jax.Device, ...]
    present: bool
    capacity: int | None
    flops_per_second: float | None = None
    bytes_per_second: float | None = None


def target(name: str = "local", *, devices: int = 1) -> Target:
    """The target with this name, with a mesh of `devices` of its devices.

    Raises:
        ValueError: the target is unknown, or has fewer devices.
        ModuleNotFoundError: the target is absent, and the package of its compiler is missing.
    """
    if name == "local":
        mesh = device_mesh(devices)
        stats = mesh.devices.flat[0].memory_stats() or {}
        return Target(name, mesh, tuple(jax.devices()), present=True, capacity=stats.get("bytes_limit"))
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    platform, kind = name.split(":")
    topology = gpu_topology(kind) if platform == "gpu" else _topology(kind)
    mesh = device_mesh(devices, devices=topology)
    if platform == "gpu":
        gpu = GPUS[kind]
        return Target(name, mesh, tuple(topology), False, gpu.memory, bytes_per_second=gpu.bytes_per_second)
    return Target(name, mesh, tuple(topology), False, _CAPACITY[kind], _FLOPS_PER_SECOND[kind], _BYTES_PER_SECOND[kind])


def _topology(kind: str) -> list[jax.Device]:
    # Without this, libtpu asks the cloud's metadata server for the TPU, and waits.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Without these, libtpu looks for a TPU's name and hosts, and prints a warning about each.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATORS[kind])
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # Several processes may compile at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            f"target 'tpu:{kind}' needs XLA's TPU compiler, the package libtpu: pip install 'kd_local[tpu-compiler]', "
            "or pip install libtpu"
        )
    return list(topologies.get_topology_desc(platform="tpu", topology_name=_TPUS[kind]).devices)
