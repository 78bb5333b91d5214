"""Reads weights from files of PyTorch, .npz and .safetensors files, without executing their contents.

The format is recognised by the contents, not by the suffix. Files of PyTorch are pickles. They are read only with
PyTorch's restricted unpickler, which creates only tensors and plain containers, and is safe since PyTorch 2.6. Settings
and results next to the tensors are skipped if their types are in a short list (in `pickles.py`), and refused otherwise.
"""

import importlib
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from kd_local.interop.pickles import is_foreign, is_harmless, is_older_format, pickled, placeholder
from kd_local.interop.safetensors import is_safetensors, read_safetensors
from kd_local.interop.wrappers import AVERAGES, WRAPPERS, find_state, plain_names

OLDEST_TORCH = (2, 6)
_TO_NPZ = (
    "import numpy, torch; d = torch.load({source!r}, map_location='cpu', weights_only=True); "
    f"d = next((d[k] for k in {(*WRAPPERS, *AVERAGES)} if isinstance(d.get(k), dict)), d); "
    "numpy.savez({target!r}, **{{k: v.detach().float().numpy() for k, v in d.items() if torch.is_tensor(v)}})"
)
# Contents that are mistaken for weights: the first bytes of the file, and a description.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file with git lfs pull"),
    (b"<", "a web page: download the file itself"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them: save the arrays by their names in PyTorch with numpy.savez"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"\x93NUMPY", "one array without a name: save the tensors of a network by their names with numpy.savez"),
)


def read_state_dict(path: str | Path, *, report: Callable[[str], None] | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file as numpy arrays by their names in PyTorch, in its layouts and with their dtypes.

    The network in a checkpoint is found, and prefixes of its names are removed: see `kd_local.interop.wrappers`. If an
    .npz file has names that start with `state/`, only those arrays are read, without `state/`.

    Args:
        path: an .npz or .safetensors file, for which numpy suffices, or a file of `torch.save`, with any suffix.
        report: called with a sentence if the file has several networks and one of them is read.

    Raises:
        ValueError: the file does not exist, has another format, is damaged, has no tensors or several networks, has
            objects that cannot be read safely, or has dtypes unknown to numpy; or PyTorch is older than 2.6.
        ModuleNotFoundError: the file needs PyTorch, which is not installed; the error has a command that converts it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a file of weights")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give the path of a file of weights")
    with path.open("rb") as stream:
        start = stream.read(512)
    arrays, chosen = _reader(path, start)(path)
    arrays, removed = plain_names(arrays)
    if report is not None:
        for note in (*chosen, *removed):
            report(f"{path}: {note}")
    return arrays


Found = tuple[dict[str, np.ndarray], tuple[str, ...]]


def _reader(path: Path, start: bytes) -> Callable[[Path], Found]:
    """The function that reads a file whose first bytes are `start`."""
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.rpartition("/")[2] for name in archive.namelist()}
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise _damaged(path, error) from error
        return _read_torch if "data.pkl" in names else _read_npz
    if start.startswith(b"PK\x05\x06"):
        raise ValueError(f"{path} has no arrays: save the tensors of a network by their names")
    if start.startswith(b"\x80"):
        if not is_older_format(path):
            raise ValueError(
                f"{path} is a pickle that torch.save did not write, and reading it would run code: save the weights by "
                "torch.save(network.state_dict(), PATH) or numpy.savez"
            )
        return _read_torch
    if is_safetensors(start):
        return _read_safetensors
    if not start:
        raise ValueError(f"{path} is empty: copy or download it again")
    kinds = [kind for beginning, kind in _OTHERS if start.lstrip().startswith(beginning)]
    if start[257:262] == b"ustar":
        kinds = ["a tar archive: unpack it"]
    if kinds:
        raise ValueError(f"{path} is {kinds[0]}")
    raise ValueError(
        f"{path} is not a file of weights, or its start is damaged: expected one of torch.save, numpy.savez or "
        "safetensors"
    )


def _damaged(path: Path, error: Exception) -> ValueError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(f"{path} cannot be read, it is damaged or incomplete: {text}")


def _read_safetensors(path: Path) -> Found:
    try:
        arrays = read_safetensors(path)
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if not arrays:
        raise ValueError(f"{path} has no arrays: save the tensors of a network by their names")
    return arrays, ()


def _read_npz(path: Path) -> Found:
    # numpy and zipfile raise many kinds of exceptions for damaged files.
    try:
        with np.load(path, allow_pickle=False) as file:
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
    return arrays, ()


def _read_torch(path: Path) -> Found:
    torch = _torch(path)
    try:
        names, protocol = pickled(path)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise _damaged(path, error) from error
    skipped = [placeholder(name) for name in names if is_harmless(name)]
    try:
        with torch.serialization.safe_globals(skipped), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about the pickle's protocol
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unread(path, names, protocol, error) from error
    try:
        tensors, notes = find_state(loaded, torch.is_tensor)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    return {name: _to_numpy(torch, path, name, tensor) for name, tensor in tensors.items()}, notes


def _torch(path: Path) -> Any:
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        line = _TO_NPZ.format(source=str(path), target=str(path.with_suffix(".npz")))
        raise ModuleNotFoundError(
            f"{path} is a file of PyTorch, and torch is not installed: pip install torch, or convert the file on a "
            f'machine with torch, with python -c "{line}"'
        ) from error
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ValueError(
            f"{path} is a file of PyTorch, and torch {torch.__version__} is installed, which can run code of a file: "
            f"pip install 'torch>={oldest}'"
        )
    return torch


def _unread(path: Path, names: tuple[str, ...], protocol: int, error: Exception) -> ValueError:
    """The error for a file that torch.load refuses."""
    again = "save the weights alone, torch.save(network.state_dict(), PATH)"
    if any(name.startswith("__torch__.") for name in names):
        return ValueError(f"{path} is a TorchScript program, and reading it would run code: {again}")
    if any(name.startswith("torch.nn.modules.") for name in names):
        kind = next(name for name in names if is_foreign(name) or name.startswith("torch.nn.modules."))
        return ValueError(f"{path} holds a whole network ({kind}), and reading it would run code: {again}")
    if others := [name for name in names if is_foreign(name)]:
        return ValueError(
            f"{path} holds {', '.join(others[:4])} besides tensors, and reading these would run code: {again}"
        )
    if protocol > 2:
        return ValueError(f"{path} has pickle protocol {protocol}, which torch reads only by running code: {again}")
    if names and "nsupported" in str(error):
        return ValueError(f"{path} holds objects besides tensors that torch does not read safely: {again}")
    return _damaged(path, error)


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
