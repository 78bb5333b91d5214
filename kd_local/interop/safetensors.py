"""Reads and writes .safetensors files: the length of a JSON header, the header, and the bytes of the tensors.

Reference: github.com/huggingface/safetensors, "Format".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from kd_local.files import replacing

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
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


def write_safetensors(path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors file, which `read_state_dict` and the libraries of safetensors read.

    Args:
        path: the file, which is replaced if it exists.
        arrays: arrays by name.
        metadata: texts by name, which are stored in the header.

    Raises:
        ValueError: there are no arrays, or the format has no such dtype.
        OSError: the file cannot be written.
    """
    if not arrays:
        raise ValueError("there are no arrays to write: give the arrays of a network by name")
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    contents, end = list[bytes](), 0
    # As in the reference: the largest elements first, so that each tensor is aligned to its elements.
    for name, array in sorted(
        ((name, np.asarray(array)) for name, array in arrays.items()), key=lambda item: (-item[1].itemsize, item[0])
    ):
        if array.dtype not in _NAMES:
            raise ValueError(f"{name} is {array.dtype}, which safetensors does not have: write it as float32")
        contents.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        offsets = [end, end := end + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    with replacing(Path(path)) as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for content in contents:
            file.write(content)
