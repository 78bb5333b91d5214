"""Reads weights from files of PyTorch and from .npz files, without executing their contents.

Files of PyTorch are pickles. They are read only with PyTorch's restricted unpickler, which creates tensors and plain
containers.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.lib.npyio import NpzFile

from kd_local.errors import unknown

TORCH_SUFFIXES: tuple[str, ...] = (".th", ".pth", ".pt", ".tar")
_SUFFIXES = (".npz", *TORCH_SUFFIXES)
_WRAPPERS = ("state_dict", "model", "net")
_TO_NPZ = (
    "import numpy, torch; d = torch.load({source!r}, map_location='cpu', weights_only=True); "
    f"d = next((d[k] for k in {_WRAPPERS} if k in d), d); "
    "numpy.savez({target!r}, **{{k: v.detach().float().numpy() for k, v in d.items() if torch.is_tensor(v)}})"
)


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file as numpy arrays by their names in PyTorch, in its layouts and with their dtypes.

    A checkpoint's `state_dict`, `model` or `net` is read. If all names start with `module.` (nn.DataParallel), this is
    removed. If an .npz file has names that start with `state/`, only those are read, without `state/`.

    Args:
        path: an .npz file, for which numpy suffices, or a .th, .pth, .pt or .tar file of PyTorch.

    Raises:
        ValueError: the file does not exist, has another suffix, is damaged, has no tensors, or has dtypes unknown to
            numpy.
        ModuleNotFoundError: the file needs PyTorch, which is not installed; the error has a command that converts it.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"{path}: {unknown('suffix', path.suffix, _SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    arrays = _read_npz(path) if path.suffix.lower() == ".npz" else _read_torch(path)
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read, it is damaged or its suffix is wrong: {error}")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # For damaged files numpy and zipfile raise many kinds of exceptions.
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, NpzFile):
                raise ValueError("it has one array without a name")
            names = {name: name for name in file.files}
            if state := {name.removeprefix("state/"): name for name in names if name.startswith("state/")}:
                names = state
            arrays = {short: file[name] for short, name in names.items()}
    except Exception as error:
        raise _damaged(path, error) from error
    if not arrays:
        raise ValueError(f"{path} has no arrays: save the tensors of a network by their names")
    for name, array in arrays.items():
        if array.dtype.kind == "V":
            raise ValueError(
                f"{path}: {name} is {array.dtype}, probably bfloat16, which numpy does not know: save float32"
            )
    return arrays


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        line = _TO_NPZ.format(source=str(path), target=str(path.with_suffix(".npz")))
        raise ModuleNotFoundError(
            f"{path} is a file of PyTorch, and torch is not installed: pip install torch, or convert the file on a "
            f'machine with torch, with python -c "{line}"'
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _damaged(path, error) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    tensors = {}
    if isinstance(loaded, Mapping):
        tensors = {name: x for name, x in loaded.items() if isinstance(name, str) and torch.is_tensor(x)}
    if not tensors:
        inside = f"entries {', '.join(map(repr, loaded))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ValueError(
            f"{path} has no tensors by name but {inside}: save a network's state_dict(), alone or as the entry "
            f"{' or '.join(map(repr, _WRAPPERS))}"
        )
    return {name: _to_numpy(torch, path, name, tensor) for name, tensor in tensors.items()}


def _to_numpy(torch: Any, path: Path, name: str, tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:  # JAX's bfloat16 for numpy has the same bits
            return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path}: {name} cannot be converted to a numpy array: save it as float32 ({error})"
        ) from error
