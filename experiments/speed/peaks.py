"""Peak speeds of devices, from the vendors' data sheets, for dense matrix products."""

from collections.abc import Mapping

# Per second: for float32 as JAX computes convolutions by default (TF32 on GPUs, bfloat16 on TPUs), and for bfloat16.
_FLOPS: Mapping[str, tuple[float, float]] = {
    "H200": (494.7e12, 989.4e12),
    "H100": (494.7e12, 989.4e12),
    "A100": (156e12, 312e12),
    "L40S": (183e12, 362e12),
    "L4": (60e12, 121e12),
    "v6 lite": (918e12, 918e12),
    "v5 lite": (197e12, 197e12),
    "v5p": (459e12, 459e12),
    "v4": (275e12, 275e12),
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Floating-point operations a second of a device, such as `NVIDIA H100 80GB HBM3`; None if it is not known."""
    for name, (in_float32, in_bfloat16) in _FLOPS.items():
        if name in device_kind:
            return in_bfloat16 if dtype == "bfloat16" else in_float32
    return None
