"""Reads and writes a network's variables as an orbax checkpoint, without optimizer state.

The tree is `{"params": {BLOCK: ...}, "batch_stats": {BLOCK: ...}}`, as `Network.init` returns it. The arrays have no
devices: any machine reads them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kd_local.networks import Variables
from kd_local.orbax_messages import Quiet

_TREE = "_METADATA"  # the file of a checkpoint that describes its tree


def is_orbax(path: Path) -> bool:
    """True if a folder is an orbax checkpoint of a tree."""
    return (path / _TREE).is_file()


def write_orbax(path: str | Path, variables: Variables) -> None:
    """Writes a network's variables as an orbax checkpoint, which `orbax.checkpoint.StandardCheckpointer` also reads.

    Args:
        path: the folder, which must not exist.
        variables: the variables, with unchanged dtypes.

    Raises:
        ValueError: the folder exists.
        OSError: it cannot be written.
    """
    folder = Path(path).absolute()
    if folder.exists():
        raise ValueError(f"{folder} exists: write the checkpoint to a new folder")
    try:
        with _quiet(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, jax.tree.map(np.asarray, variables))
    except Exception as error:  # orbax and tensorstore raise many kinds
        raise OSError(f"{folder} cannot be written: {_first_line(error)}") from error


def read_orbax(path: str | Path) -> dict[str, Any]:
    """The variables of an orbax checkpoint as numpy arrays.

    Raises:
        ValueError: the folder is not an orbax checkpoint of a tree of arrays, or it is damaged.
    """
    folder = Path(path).absolute()
    if not is_orbax(folder):
        raise ValueError(f"{folder} is not an orbax checkpoint: expected a folder with a file {_TREE}")
    try:
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
            arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = checkpointer.restore(folder, restore_args=arrays)
    except Exception as error:
        raise ValueError(f"{folder} cannot be read, it is damaged or incomplete: {_first_line(error)}") from error
    if not isinstance(restored, dict):
        raise ValueError(f"{folder} holds a {type(restored).__name__}: expected the variables of a network")
    return restored


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides orbax's messages about the other arrays after one could not be read or written."""
    quiet, failed = Quiet(), True
    try:
        yield
        failed = False
    finally:
        quiet.end(failed=failed)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
