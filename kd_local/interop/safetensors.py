"""Reads .safetensors files, which consist of the length of a JSON header, the header, and the tensors' bytes.

Reference: github.com/huggingface/safetensors, "Format".
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
_LENGTH = 8


def is_safetensors(start: bytes) -> bool:
    """True if a file that starts with these bytes (9 or more) may have this format."""
    return start[_LENGTH : _LENGTH + 1] == b"{" and int.from_bytes(start[:_LENGTH], "little") < 2**27


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file by name, with their dtypes.

    Raises:
        ValueError: the file has another format, is incomplete, or has a dtype unknown to numpy.
    """
    content = path.read_bytes()
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    header = json.loads(content[_LENGTH:end])
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            first, last = (end + int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"the entry of {name} is incomplete") from None
        if dtype not in _DTYPES:
            raise ValueError(f"{name} is {dtype}, which numpy does not know: save it as float32")
        if not end <= first <= last <= len(content):
            raise ValueError(f"the file ends before {name}")
        arrays[name] = np.frombuffer(content[first:last], _DTYPES[dtype]).reshape(shape).copy()
    return arrays
