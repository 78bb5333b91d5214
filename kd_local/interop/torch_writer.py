"""Writes files as `torch.save` does, without PyTorch.

A file is an archive of `data.pkl`, the pickle of an ordered dictionary of tensors, and of `data/0`, `data/1`, ..., the
bytes of the tensors, which are stored without compression and start at multiples of 64 bytes. The pickle names
PyTorch's types, which this package does not import, so its operations are written one by one.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from kd_local.files import replacing

_STORAGES: dict[Any, str] = {
    np.dtype(np.float64): "Double", np.dtype(np.float32): "Float", np.dtype(np.float16): "Half",
    np.dtype(jnp.bfloat16): "BFloat16", np.dtype(np.int64): "Long", np.dtype(np.int32): "Int",
    np.dtype(np.int16): "Short", np.dtype(np.int8): "Char", np.dtype(np.uint8): "Byte", np.dtype(np.bool_): "Bool",
}  # fmt: skip
_ROOT = "network"
_ALIGNMENT = 64
_LOCAL_HEADER = 30  # bytes of a local file header before the file's name
_EXTRA_HEADER = 4  # bytes of an extra field before its contents
_PADDING = b"FB"  # the extra field that PyTorch uses for padding
_DICTIONARY = b"ccollections\nOrderedDict\n)R"  # a call without arguments


def write_state_dict(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Writes a file that `torch.load` reads as an ordered dictionary of tensors, also with `weights_only=True`.

    PyTorch is not needed. `read_state_dict` reads the file with PyTorch.

    Args:
        path: the file, which is replaced if it exists.
        arrays: arrays by their names in PyTorch, in its layouts, such as `network_to_torch` returns.

    Raises:
        ValueError: there are no arrays, or PyTorch has no such dtype.
        OSError: the file cannot be written.
    """
    if not arrays:
        raise ValueError("there are no arrays to write: give the arrays of a network by name")
    tensors = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in tensors.items():
        if array.dtype not in _STORAGES:
            raise ValueError(f"{name} is {array.dtype}, which PyTorch does not have: write it as float32")
    with replacing(Path(path)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", _pickle(tensors))
        _add(archive, "byteorder", b"little")
        for number, array in enumerate(tensors.values()):
            _add(archive, f"data/{number}", array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Adds a file whose contents start at a multiple of 64 bytes."""
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
    assert archive.fp is not None
    start = archive.fp.tell() + _LOCAL_HEADER + len(entry.filename) + _EXTRA_HEADER
    padding = -start % _ALIGNMENT
    entry.extra = _PADDING + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(entry, content)


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle, of protocol 2, of an ordered dictionary of tensors."""
    items = b"".join(_plain(name) + _tensor(str(i), array) for i, (name, array) in enumerate(tensors.items()))
    return b"\x80\x02" + _DICTIONARY + b"(" + items + b"u."


def _tensor(key: str, array: np.ndarray) -> bytes:
    """A call of the function that makes a tensor of a storage, first element, shape, strides, requires_grad, hooks."""
    storage = b"(%sctorch\n%sStorage\n%stQ" % (
        _plain("storage"),
        _STORAGES[array.dtype].encode(),
        b"".join(map(_plain, (key, "cpu", array.size))),
    )
    strides = tuple(int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim))
    numbers = b"".join(map(_plain, (0, array.shape, strides, False)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + _DICTIONARY + b"tR"


def _plain(value: object) -> bytes:
    """The operations that make a plain value: its pickle without the protocol and the end."""
    return pickle.dumps(value, 2)[2:-1]
