"""Builds the teachers that a config names, from files of weights and from the folders of earlier runs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from experiments.configs.contradictions import teacher_names, teacher_places
from experiments.from_config.deployed_runs import STATE, deployed_teacher, has_state
from experiments.from_config.images import of_channels
from experiments.from_config.trained_run import Normalisation, read_run, unrecorded
from kd_local.choices.networks import SHORTCUTS
from kd_local.data import DatasetSpec
from kd_local.distill import Renormalisation, Teacher
from kd_local.errors import unknown
from kd_local.files import replacing
from kd_local.interop import load_network, read_state_dict
from kd_local.models import create
from kd_local.models.layers import DType
from kd_local.networks import Network, Variables
from kd_local.training import check_finite

WEIGHTS = "network.npz"
"""The file of a run's trained network. The name of a variable is its collection, block and path, joined by `:`."""

DTYPES: Mapping[str, DType] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def save_network(variables: Variables, workdir: Path) -> None:
    """Writes a trained network to the folder of its run."""
    with replacing(workdir / WEIGHTS) as file:
        np.savez(file, **flatten_dict(jax.device_get(variables), sep=":"))


def load_weights(network: Network, weights: Path) -> Variables:
    """Variables of a network from a file of PyTorch weights or the folder of a run.

    Raises:
        ValueError: there is no such file or folder, the run has not ended, or the weights are of another network or not
            finite.
        ModuleNotFoundError: the file needs PyTorch, which is not installed.
    """
    path = weights / WEIGHTS if weights.is_dir() else weights
    if weights.is_dir() and not path.is_file():
        raise ValueError(
            f"{weights} has no {WEIGHTS}: expected the folder of a run that has ended; if an earlier version made it, "
            "repeat the command of the run, which writes the missing files"
        )
    arrays = read_state_dict(path, report=_report)
    if all(":" in name for name in arrays):
        variables = unflatten_dict({tuple(name.split(":")): x for name, x in arrays.items()})
    else:
        try:
            variables = load_network(network, arrays, dtype=jnp.float32)
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from error
    check_finite(variables, of=str(weights))
    return variables


def _report(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def weights_file(place: Path) -> Path:
    """The file of weights at a path, which may be the folder of a run."""
    if not place.is_dir():
        return place
    return place / (STATE if has_state(place) and not (place / WEIGHTS).is_file() else WEIGHTS)


def teachers_of(config: ConfigDict, data: DatasetSpec, *, fresh: bool) -> tuple[Teacher, ...]:
    """`teachers` for the images of a data set."""
    normalisation = data.augmentation.mean, data.augmentation.std
    return teachers(config, classes=data.classes, shape=data.shape, normalisation=normalisation, fresh=fresh)


def teachers(
    config: ConfigDict,
    *,
    classes: int,
    shape: tuple[int, int, int],
    normalisation: Normalisation,
    fresh: bool = False,
) -> tuple[Teacher, ...]:
    """The teachers that a config names.

    A teacher from the folder of a run gets the images normalised as in that run, a teacher from a file as
    `teacher.mean` and `teacher.std` say.

    Args:
        config: the config.
        classes: number of classes.
        shape: height, width and channels of the images.
        normalisation: the normalisation of the student's images, also used for teachers from files, with a note, if
            the config has none for them.
        fresh: if True, the weights are zeros and no file is read, for uses that need only shapes.

    Raises:
        ValueError: a network or weights are missing, or do not fit each other or the images; or a key contradicts the
            records of a run.
        ModuleNotFoundError: see `load_weights`.
    """
    settings = config.teacher
    if settings.dtype not in DTYPES:
        raise unknown("dtype", settings.dtype, DTYPES)
    places = teacher_places(config)
    names = teacher_names(config, len(places), shapes_only=fresh)
    if not names:
        names = [read_run(place).config.network.name for place in places]
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    of_files = (
        of_channels(config, "teacher.mean", normalisation[0]),
        of_channels(config, "teacher.std", normalisation[1]),
    )
    _check_used(config, places)
    found = []
    for i, name in enumerate(names):
        place = places[i] if places else None
        shortcut, own = settings.shortcut or SHORTCUTS[0], of_files
        if place is not None and place.is_dir():
            run = read_run(place)
            shortcut, own = run.config.network.shortcut, run.normalisation
            if settings.shortcut not in (None, shortcut):
                raise ValueError(
                    f"teacher.shortcut is {settings.shortcut}, but in the run in {place} it is {shortcut}: leave it out"
                )
            if run.config.network.name != name:
                raise ValueError(
                    f"{place} is a run of {run.config.network.name}, but teacher.network is {name!r}: leave out "
                    "teacher.network"
                )
        network = create(name, classes=classes, shortcut=shortcut, dtype=DTYPES[settings.dtype])
        if place is not None and weights_file(place) == place / STATE:
            same_data = run.config.data.name == config.data.name
            network, variables = deployed_teacher(run, config.data.data_dir if same_data else None, settings.dtype)
        elif place is None:
            variables = jax.eval_shape(network.init, jax.random.key(0), images)
            variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
        else:
            variables = load_weights(network, place)
        try:
            network.check(variables, images)
            renormalisation = Renormalisation.between(normalisation, own)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if place is not None and not place.is_dir() and settings.mean is None and settings.std is None:
            _report(
                unrecorded(place, "the student's", own, "--config.teacher.mean and --config.teacher.std set others")
            )
        found.append(Teacher(network, variables, renormalisation))
    return tuple(found)


def _check_used(config: ConfigDict, places: Sequence[Path]) -> None:
    """Refuse a normalisation for files where every teacher is a run, which records its own."""
    if not places or not all(place.is_dir() for place in places):
        return
    for name in ("mean", "std"):
        if config.teacher[name] is not None:
            raise ValueError(
                f"teacher.{name} is {config.teacher[name]}, which is for weights from a file, and {places[0]} is the "
                "folder of a run, which records its own: leave it out"
            )
