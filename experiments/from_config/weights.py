"""Weights at a path: the folder of a run, an orbax checkpoint, or a file of weights."""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.from_config.deployed_runs import STATE, has_state
from kd_local.data import file_digest
from kd_local.files import replacing
from kd_local.interop import load_network, read_orbax, read_state_dict
from kd_local.interop.orbax_files import is_orbax
from kd_local.interop.zoo import classes_of
from kd_local.networks import Network, Variables
from kd_local.training import check_finite

WEIGHTS = "network.npz"
"""The file of a run's trained network. The name of a variable is its collection, block and path, joined by `:`."""
LAST = "linear"
"""The part of a head whose shape depends on the number of classes."""


def save_network(variables: Variables, workdir: Path) -> None:
    """Writes a trained network to the folder of its run."""
    with replacing(workdir / WEIGHTS) as file:
        np.savez(file, **by_name(variables))


def by_name(variables: Variables) -> dict[str, Any]:
    """The arrays of a network by the names that its files have."""
    arrays: dict[str, Any] = flatten_dict(jax.device_get(variables), sep=":")
    return arrays


def is_folder_of_run(place: Path) -> bool:
    """True if a path is a folder with the records of a run, not weights alone."""
    return place.is_dir() and not is_orbax(place)


def load_weights(network: Network, weights: Path) -> Variables:
    """Variables of a network from a file of weights, an orbax checkpoint or the folder of a run.

    Raises:
        ValueError: there is no such file or folder, the run has not ended, or the weights are of another network or not
            finite.
        ModuleNotFoundError: the file needs PyTorch, which is not installed.
    """
    if is_orbax(weights):
        variables: Variables = read_orbax(weights)
    else:
        variables = _of_file(network, weights)
    check_finite(variables, of=str(weights))
    return variables


def _of_file(network: Network, weights: Path) -> Variables:
    path = weights / WEIGHTS if weights.is_dir() else weights
    if weights.is_dir() and not path.is_file():
        raise ValueError(
            f"{weights} has no {WEIGHTS}: expected the folder of a run that has ended; if an earlier version made it, "
            "repeat the command of the run, which writes the missing files"
        )
    arrays = read_state_dict(path, report=_report)
    if _are_ours(arrays):
        return unflatten_dict({tuple(name.split(":")): x for name, x in arrays.items()})
    try:
        return load_network(network, arrays, dtype=jnp.float32)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error


def _are_ours(arrays: Mapping[str, Any]) -> bool:
    """True if the names are those of `by_name`."""
    return all(":" in name for name in arrays)


def _report(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def classes_at(network: Network, weights: Path) -> int | None:
    """The number of classes of a file of weights or of an orbax checkpoint; None if it is not known.

    Raises:
        ValueError, ModuleNotFoundError: see `load_weights`.
    """
    if not is_orbax(weights):
        arrays = read_state_dict(weights)
        if not _are_ours(arrays):
            return classes_of(network, arrays)
    return classes_in(load_weights(network, weights), network)


def classes_in(variables: Mapping[str, Any], network: Network) -> int | None:
    """The number of classes of a network's variables, by the bias of the last layer; None if it is missing."""
    start = ("params", network.names[-1], LAST)
    biases = [x for path, x in flatten_dict(dict(variables)).items() if path[:3] == start and path[-1] == "bias"]
    return int(biases[0].shape[-1]) if biases else None


def weights_file(place: Path) -> Path:
    """The file of weights at a path, which may be the folder of a run; an orbax checkpoint is returned unchanged."""
    if not is_folder_of_run(place):
        return place
    return place / (STATE if has_state(place) and not (place / WEIGHTS).is_file() else WEIGHTS)


def weights_digest(place: Path) -> str:
    """A digest of the file of weights at a path, or of the files of an orbax checkpoint with their names.

    Raises:
        OSError: a file cannot be read.
    """
    path = weights_file(place)
    if not path.is_dir():
        return file_digest(path)
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(f"{name} {file_digest(path / name)} " for name in files).encode()).hexdigest()
