"""The facts of a run: digests of its images and teachers, and the versions in use.

They are the part of a run's identity that is not in its config, see `experiments.folders.identity`.
"""

import json
from dataclasses import asdict
from typing import Any

import jax
from ml_collections import ConfigDict

import kd_local
from experiments.configs.contradictions import has_teachers, teacher_places
from experiments.folders.identity import VERSION
from experiments.from_config.images import describe_images
from experiments.from_config.trained_run import read_run
from experiments.from_config.weights import is_folder_of_run, weights_digest
from kd_local.contract import Method
from kd_local.data import Data, content_digest, files_digest
from kd_local.data.prepared import find
from kd_local.data.registry import INCLUDED
from kd_local.distill import Distillation, TaughtContSup, Teacher
from kd_local.distill.digests import variables_digest
from kd_local.paths import read_existing


def facts_of_run(config: ConfigDict, method: Method, data: Data) -> dict[str, Any]:
    """All facts of a run, before it starts.

    Raises:
        OSError: a file of the data set or of a teacher cannot be read.
        ValueError: the folder of the data set or of a teacher is damaged.
    """
    augmentation = asdict(data.augmentation)
    del augmentation["strong"]  # the options have its numbers
    images = {
        "train": len(data.train),
        "test": len(data.test),
        "validation": len(data.validation or ()),
        **augmentation,
        "shape": data.train.shape,
        "content": content_digest(data),
    }
    found = _facts_of_files(config)
    found |= {f"images.{name}": value for name, value in images.items() if value is not None}
    found |= {f"teachers.{i}.weights": variables_digest(one.variables) for i, one in enumerate(_teachers(method))}
    return dict(json.loads(json.dumps(found)))


def facts_of_files(config: ConfigDict) -> dict[str, Any]:
    """The facts that are known without reading images or weights; empty if the data set or a teacher is missing."""
    try:
        return _facts_of_files(config)
    except (ValueError, OSError, ModuleNotFoundError):
        return {}


def _facts_of_files(config: ConfigDict) -> dict[str, Any]:
    spec, name = describe_images(config), config.data.name
    found: dict[str, Any] = {VERSION: kd_local.__version__, "jax": jax.__version__}
    found |= {"images.train": spec.train, "images.test": spec.test, "images.classes": spec.classes}
    if name != INCLUDED:
        folder = find(name, config.data.data_dir)
        found["data.data_dir"] = str(folder).removesuffix(f"/{name}/{folder.name}")
        found |= {"images.version": folder.name, "images.files": files_digest(folder)}
    if config.network.weights is not None:
        found["start.file"] = weights_digest(read_existing(config.network.weights, "network.weights"))
    if has_teachers(config):
        places = teacher_places(config)
        found["teachers"] = len(places)
        for i, place in enumerate(places):
            found[f"teachers.{i}.file"] = weights_digest(place)
            if is_folder_of_run(place):
                mean, std = read_run(place).normalisation
                found |= {f"teachers.{i}.mean": list(mean), f"teachers.{i}.std": list(std)}
    return found


def _teachers(method: Method) -> tuple[Teacher, ...]:
    if isinstance(method, Distillation):
        return method.teachers
    return (method.rule.teacher,) if isinstance(method, TaughtContSup) else ()
