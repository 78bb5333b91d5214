"""Reads the folder of a run whose weights are used: its network, and the normalisation of its images.

Weights are used with the normalisation that they were trained with. Teachers and evaluations read it from the run's
folder.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.folders.identity import flattened
from experiments.folders.workdirs import CONFIG, FACTS, recorded_config, recorded_identity
from experiments.from_config.images import describe_images
from kd_local.data import Data, content_digest

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, on the scale 0 to 255."""

_RESTORE = "restore it, or use another folder"
_FILES_OF_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".npz")
_OF_WEIGHTS = ("network.name", "network.shortcut", "data.mean", "data.std")


@dataclass(frozen=True)
class TrainedRun:
    """The records of a run about its network.

    Attributes:
        folder: the run's folder.
        config: the run's config; a key that the recorded config lacks has its default.
        facts: the run's facts, see `experiments.folders.identity`; empty in a folder of an earlier version.
        normalisation: the normalisation of the run's images.
    """

    folder: Path
    config: ConfigDict
    facts: Mapping[str, Any]
    normalisation: Normalisation


def read_run(folder: Path) -> TrainedRun:
    """The records in the folder of a run.

    Raises:
        ValueError: the folder is not that of a run, its records are damaged, or the normalisation of the run's images
            is unknown.
    """
    if not (folder / CONFIG).is_file():
        there = sorted(path.name for path in folder.glob("*") if path.suffix in _FILES_OF_WEIGHTS)
        raise ValueError(
            f"{folder} is not the folder of a run, so its network is unknown: give the folder of a run, or a file of "
            f"weights{f', such as {folder / there[0]}' if there else ''}"
        )
    config, facts = _with_defaults(folder), recorded_identity(folder, way_out=_RESTORE).facts
    if "images.mean" in facts and "images.std" in facts:
        mean, std = (_numbers(folder, facts, f"images.{name}") for name in ("mean", "std"))
        return TrainedRun(folder, config, facts, (mean, std))
    # A folder of an earlier version has no facts: the normalisation is that of the config's data set.
    try:
        augmentation = describe_images(config).augmentation
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise ValueError(f"the normalisation of the images of {folder} is unknown: {error}") from None
    return TrainedRun(folder, config, facts, (augmentation.mean, augmentation.std))


def _numbers(folder: Path, facts: Mapping[str, Any], name: str) -> tuple[float, ...]:
    numbers = facts[name]
    if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(
            f"{folder / FACTS}: {name} is {numbers!r}: use a list of numbers, one for each channel; restore the file"
        )
    return tuple(numbers)


def evaluation_config(run: TrainedRun, config: ConfigDict, given: Collection[str]) -> ConfigDict:
    """The config of an evaluation, with the network and the images of a run; only with its network for other data.

    Args:
        run: the run whose network is evaluated.
        config: the config of the evaluation.
        given: the keys of `config` that the user has set, such as `data.data_dir`. Their values are kept.

    Raises:
        ValueError: a key that the user has set contradicts the run.
    """
    recorded, wanted = flattened(run.config), flattened(config)
    for key in _OF_WEIGHTS:
        if key in given and wanted[key] != recorded[key]:
            raise ValueError(
                f"{key} is {wanted[key]!r}, but in the run in {run.folder} it is {recorded[key]!r}: leave it out"
            )
    same_images = "data.name" not in given or wanted["data.name"] == recorded["data.name"]
    taken = ("network.", "data.") if same_images else ("network.",)
    merged = config.copy_and_resolve_references()
    with merged.unlocked():
        merged.update_from_flattened_dict(
            {key: value for key, value in recorded.items() if key.startswith(taken) and key not in given}
        )
        merged.network.weights = None  # those of the run's start
    return merged


def unrecorded(file: Path, whose: str, normalisation: Normalisation, way_out: str) -> str:
    """A note that a file of weights does not record the normalisation of its images, and another is used.

    Args:
        file: the file.
        whose: of whom the used one is, such as `the student's`.
        normalisation: the used one.
        way_out: the keys that set another.
    """
    mean, std = (",".join(f"{number / 255:.4g}" for number in numbers) for numbers in normalisation)
    beside = f"; {file.parent} records it: give the folder" if (file.parent / CONFIG).is_file() else f"; {way_out}"
    return f"{file} does not record the normalisation of its images: {whose} is used, mean {mean}, std {std}{beside}"


def as_trained(run: TrainedRun, data: Data) -> Data:
    """The data with the normalisation of the run's images.

    Raises:
        ValueError: the data have another number of channels or classes than the run's data.
    """
    mean, std = run.normalisation
    channels, classes = data.train.shape[-1], run.facts.get("images.classes", data.classes)
    if len(mean) != channels or classes != data.classes:
        raise ValueError(
            f"{data.name} has images of {channels} channels and {data.classes} classes, but the run in {run.folder} "
            f"was trained on {len(mean)} channels and {classes} classes: evaluate it on other images"
        )
    return replace(data, augmentation=replace(data.augmentation, mean=mean, std=std))


def other_images(run: TrainedRun, data: Data) -> str | None:
    """A sentence if the images of a run have changed since; None if they have not changed or cannot be compared."""
    recorded, found = run.facts.get("images.content"), content_digest(data)
    if data.name != run.config.data.name or None in (recorded, found) or recorded == found:
        return None
    return f"{data.name} has other images than in the run in {run.folder}: the result is for the present images"


def given_keys(config: ConfigDict, overrides: Collection[str]) -> frozenset[str]:
    """The keys that a user has set: on the command line, or in a config file to a value other than the default."""
    usual = flattened(default.get_config())
    return frozenset(overrides) | {key for key, value in flattened(config).items() if value != usual.get(key)}


def _with_defaults(folder: Path) -> ConfigDict:
    config = default.get_config()
    known, recorded = flattened(config), flattened(recorded_config(folder, way_out=_RESTORE))
    damaged = f"{str(folder / CONFIG)!r} is damaged"
    if scalar := recorded.keys() & {key.partition(".")[0] for key in known if "." in key}:
        raise ValueError(f"{damaged} ({min(scalar)} is no group of keys): {_RESTORE}")
    for key in sorted(recorded.keys() & known.keys()):
        try:
            config.update_from_flattened_dict({key: recorded[key]})
        except (TypeError, KeyError):
            raise ValueError(f"{damaged} ({key} is {json.dumps(recorded[key])}): {_RESTORE}") from None
    config.data.workers = None  # it is for the machine of that run, and earlier versions ignored it for some data
    return config
