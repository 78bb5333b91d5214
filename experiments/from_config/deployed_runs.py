"""Saves and loads the state of a run whose deployed network is more than a network of the zoo, or that has other exits.

It is the state of the run's method: with contexts, local heads, connectors, and the teacher's blocks if they are used.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from experiments.folders.identity import options
from experiments.from_config.trained_run import TrainedRun
from kd_local.contract import Method, State, TrainsNetwork
from kd_local.distill.deployed import deployed_network, deployed_variables
from kd_local.networks import COLLECTIONS, Network, Variables
from kd_local.training import check_finite

STATE = "method.npz"
"""The file of a method's state without optimizer state. The name of an array is its part, collection and path, joined
by `:`."""


def save_state(method: Method, state: State, shape: tuple[int, int, int], workdir: Path) -> None:
    """Writes the state of a method to the folder of its run, unless the file of the network has all of it."""
    whole = isinstance(method, TrainsNetwork) and method.network_variables(state) is not None
    if whole and not jax.eval_shape(method.exits, state, jax.ShapeDtypeStruct((1, *shape), jnp.float32)):
        return
    parts = {name: {key: part[key] for key in COLLECTIONS} for name, part in state.items()}
    arrays: dict[str, Any] = flatten_dict(jax.device_get(parts), sep=":")
    np.savez(workdir / STATE, **arrays)


def has_state(folder: Path) -> bool:
    """True if the folder of a run has the state of its method."""
    return (folder / STATE).is_file()


def load_state(run: TrainedRun, data_dir: str | None, dtype: str | None = None) -> tuple[Method, State]:
    """`(method, state)` of a run, without optimizer state.

    Args:
        run: the run.
        data_dir: the folder of its data set; None: as recorded.
        dtype: the compute dtype; None: as recorded.

    Raises:
        ValueError: the file is damaged or of another method, or the method cannot be built from the run's config.
    """
    from experiments.from_config.experiment import build  # builds teachers, which come from here
    from experiments.from_config.planning import left_to_measurement, planned

    config = ConfigDict(run.config.to_dict())
    config.mesh.data = config.mesh.module = 1
    config.mesh.batch_norm = "global"
    config.network.dtype = dtype or config.network.dtype
    if data_dir is not None:
        config.data.data_dir = data_dir
    if left_to_measurement(config):
        config = planned(config, run.folder)
    try:
        method = build(config, fresh_teachers=True).method
        with np.load(run.folder / STATE, allow_pickle=False) as file:
            found = unflatten_dict({tuple(name.split(":")): file[name] for name in file.files})
    except Exception as error:
        raise ValueError(f"the network of {run.folder} cannot be built: {error}") from error
    state = {name: {key: part.get(key, {}) for key in COLLECTIONS} for name, part in found.items()}
    check_finite(state, of=str(run.folder / STATE))
    return method, state


def deployed_teacher(run: TrainedRun, data_dir: str | None, dtype: str) -> tuple[Network, Variables]:
    """`(network, variables)`: the deployed network of a run, for a teacher that gives only logits.

    The arguments are those of `load_state`.

    Raises:
        ValueError: see `load_state`.
    """
    method, state = load_state(run, data_dir, dtype)
    config = ConfigDict(run.config.to_dict())
    config.network.dtype = dtype
    label = hashlib.sha256(json.dumps(options(config), sort_keys=True, default=str).encode()).hexdigest()
    return deployed_network(method, label), deployed_variables(state)
