"""Builds the teachers that a config names, from files of weights and from the folders of earlier runs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.configs.contradictions import teacher_names, teacher_places
from experiments.from_config.deployed_runs import STATE, deployed_teacher
from experiments.from_config.images import of_channels
from experiments.from_config.trained_run import Normalisation, read_run, unrecorded
from experiments.from_config.weights import is_folder_of_run, load_weights, weights_file
from kd_local.choices.networks import SHORTCUTS
from kd_local.data import DatasetSpec
from kd_local.distill import Renormalisation, Teacher
from kd_local.errors import unknown
from kd_local.models import create
from kd_local.models.layers import DType

DTYPES: Mapping[str, DType] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


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
    names = teacher_networks(config, fresh=fresh)
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
        if place is not None and is_folder_of_run(place):
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
        if place is not None and not is_folder_of_run(place) and settings.mean is None and settings.std is None:
            way_out = "--config.teacher.mean and --config.teacher.std set others"
            note = unrecorded(place, "the student's", own, way_out)
            print(f"note: {note}", file=sys.stderr)
        found.append(Teacher(network, variables, renormalisation))
    return tuple(found)


def teacher_networks(config: ConfigDict, *, fresh: bool = False) -> tuple[str, ...]:
    """The names of the teachers' networks. The arguments and errors are those of `teachers`."""
    places = teacher_places(config)
    names = teacher_names(config, len(places), shapes_only=fresh)
    return tuple(names or (read_run(place).config.network.name for place in places))


def _check_used(config: ConfigDict, places: Sequence[Path]) -> None:
    """Refuse a normalisation for files where every teacher is a run, which records its own."""
    if not places or not all(map(is_folder_of_run, places)):
        return
    for name in ("mean", "std"):
        if config.teacher[name] is not None:
            raise ValueError(
                f"teacher.{name} is {config.teacher[name]}, which is for weights from a file, and {places[0]} is the "
                "folder of a run, which records its own: leave it out"
            )
