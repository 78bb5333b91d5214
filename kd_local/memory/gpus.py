"""GPUs to compile for on a machine that has none.

XLA's GPU compiler is in JAX's CUDA plugin. It needs a description of the GPU, but neither the GPU nor its driver.
Without a GPU it cannot choose the algorithms of convolutions and matrix products by timing them. docs/measurements.md
compares ResNet-32 with an H100: the figures are equal to .1 MiB, except where other algorithms take 4 to 7 % more.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.experimental import topologies

_PLUGINS = ("xla_cuda13", "xla_cuda12")
_DEVICES = 8  # of the topology


@dataclass(frozen=True)
class Gpu:
    """A GPU as its compiler describes it.

    Attributes:
        name: of the device, as the driver tells it.
        major, minor: compute capability.
        cores: streaming multiprocessors.
        units: single-precision units of a core.
        shared_core, shared_block: bytes of shared memory of a core, and the largest of a block.
        cache: bytes of the second-level cache.
        clock: GHz.
        memory: bytes of device memory.
        bytes_per_second: peak speed of the memory.
    """

    name: str
    major: int
    minor: int
    cores: int
    units: int
    shared_core: int
    shared_block: int
    cache: int
    clock: float
    memory: int
    bytes_per_second: float


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 0, 132, 128, 233_472, 232_448, 50 * 2**20, 1.98, 84_978_434_048, 3.35e12),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 0, 108, 64, 167_936, 166_912, 40 * 2**20, 1.41, 84_974_239_744, 2.04e12),
}


def gpu_topology(kind: str) -> list[jax.Device]:
    """Devices to compile for, of one of `GPUS`.

    Raises:
        ModuleNotFoundError: JAX's CUDA plugin is missing.
    """
    if not any(_installed(plugin) for plugin in _PLUGINS):
        raise ModuleNotFoundError(
            f"target 'gpu:{kind}' needs XLA's GPU compiler, JAX's CUDA plugin of the version of jaxlib: "
            "pip install 'kd_local[gpu-compiler]', or pip install jax-cuda13-plugin jax-cuda13-pjrt"
        )
    config = _target_config(GPUS[kind])
    description = topologies.get_topology_desc("", "cuda", target_config=config, topology=f"1x1x{_DEVICES}")
    return list(description.devices)


def _installed(plugin: str) -> bool:
    try:
        return find_spec(f"jax_plugins.{plugin}") is not None
    except ModuleNotFoundError:
        return False


def _target_config(gpu: Gpu) -> str:
    """A `GpuTargetConfigProto` of XLA as text."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_core}
  shared_memory_per_block_optin: {gpu.shared_block}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {int(gpu.bytes_per_second)}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {gpu.major} minor: {gpu.minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{gpu.name}"
"""
