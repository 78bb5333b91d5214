"""The weights with which a run's network starts: `network.weights`."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from experiments.from_config.deployed_runs import has_state, load_state
from experiments.from_config.trained_run import Normalisation, read_run, unrecorded
from experiments.from_config.weights import (
    LAST,
    WEIGHTS,
    classes_at,
    classes_in,
    is_folder_of_run,
    load_weights,
)
from kd_local.data import DatasetSpec
from kd_local.local import ContSup
from kd_local.models import create
from kd_local.networks import Network, Variables, by_block, of_block
from kd_local.paths import read_existing


def with_start(config: ConfigDict, network: Network, data: DatasetSpec) -> Network:
    """The network that starts with the weights that a config names; the same network if it names none.

    The last linear layer starts new if the weights have another number of classes.

    Raises:
        ValueError: there is no such file or folder, or the weights are of another network.
        ModuleNotFoundError: the file needs PyTorch, which is not installed.
    """
    if config.network.weights is None:
        return network
    classes, normalisation = data.classes, (data.augmentation.mean, data.augmentation.std)
    place = read_existing(config.network.weights, "network.weights")
    start, found = _start(config, network, place, normalisation)
    if found != classes:
        print(f"note: {place} has {found} classes, the data have {classes}: the last layer starts new", file=sys.stderr)
        flat = flatten_dict(start)
        start = unflatten_dict({path: x for path, x in flat.items() if path[1:3] != (network.names[-1], LAST)})
    images = jax.ShapeDtypeStruct((1, *data.shape), jnp.float32)
    expected = flatten_dict(jax.eval_shape(network.init, jax.random.key(0), images), sep="/")
    given = flatten_dict(start, sep="/")
    for name, like in expected.items():
        if name in given and given[name].shape != like.shape:
            raise ValueError(f"network.weights: {place}: {name} is {given[name].shape}, expected {like.shape}")
        if name not in given and (found == classes or f"/{network.names[-1]}/{LAST}/" not in name):
            raise ValueError(f"network.weights: {place}: {name} is missing: give weights of {config.network.name}")
    return replace(network, start=start)


def _start(config: ConfigDict, network: Network, place: Path, normalisation: Normalisation) -> tuple[Variables, int]:
    """The weights at a path, and their number of classes."""

    def of_classes(classes: int) -> Network:
        return create(config.network.name, classes=classes, shortcut=config.network.shortcut)

    if not is_folder_of_run(place):
        found = classes_at(network, place)
        start = load_weights(of_classes(found or 1), place)
        if config.data.mean is None and config.data.std is None:
            way_out = "--config.data.mean and --config.data.std set others"
            note = unrecorded(place, f"that of {config.data.name}", normalisation, way_out)
            print(f"note: {note}", file=sys.stderr)
        return start, found or 1
    run = read_run(place)
    for key in ("name", "shortcut"):
        if run.config.network[key] != config.network[key]:
            raise ValueError(
                f"network.weights: {place} is a run with network.{key}={run.config.network[key]}, and this one has "
                f"{config.network[key]}: use the same network"
            )
    if has_state(place) and not (place / WEIGHTS).is_file():
        method, state = load_state(run, None)
        if not isinstance(method, ContSup):
            raise ValueError(f"network.weights: {place} is a run of {run.config.method}, without a whole network")
        variables: Variables = by_block(
            {
                name: of_block(of_block(state[module.name], "blocks"), str(i))
                for module in method.cut_network.modules
                for i, name in enumerate(module.names)
            }
        )
    else:
        variables = load_weights(network, place)
    if run.normalisation != normalisation:
        print(f"note: network.weights: the images of the run in {place} were normalised otherwise", file=sys.stderr)
    return variables, classes_in(variables, network) or 1
