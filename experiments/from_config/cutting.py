"""Cuts the network into modules as a config says: boundaries, contexts, heads and rematerialisation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.contradictions import boundary_names, locally_taught
from experiments.configs.objectives import AUXILIARY_PARAMETERS, TEACHER, TEACHER_GROUP
from experiments.from_config.numbers import numbers
from experiments.from_config.teachers import DTYPES, teachers_of
from kd_local.data import DatasetSpec
from kd_local.distill import StoneLoss, TeacherRule
from kd_local.errors import unknown
from kd_local.local import (
    AUXILIARIES,
    PAIR_RULES,
    REMATERIALIZABLE,
    AuxiliaryRule,
    CutNetwork,
    HeadRule,
    PixelScale,
    TaskLoss,
    balanced_memory,
    check_boundaries,
    cut,
    equal_layers,
    man_boundaries,
    man_loss_weights,
    man_plus_boundaries,
    published_loss_scale,
    single_blocks,
    stage_boundaries,
)
from kd_local.networks import Network

_RULES: Mapping[str, Callable[[Network, int], tuple[str, ...]]] = {
    "single": single_blocks,
    "man": man_boundaries,
    "man_plus": man_plus_boundaries,
    "stages": lambda network, modules: stage_boundaries(network),
}


def cut_from_config(
    config: ConfigDict,
    network: Network,
    data: DatasetSpec,
    auxiliary: AuxiliaryRule,
    platform: str,
    task_loss: TaskLoss,
) -> CutNetwork:
    """The network cut into modules as `config.local` says. In place of balanced boundaries it has equal ones.

    Methods of pairs of modules have context R0, heads alone, and weights of their own.

    Args:
        config: the config.
        network: the network.
        data: the description of the data set.
        auxiliary: from `auxiliary_from_config`.
        platform: the platform to compile for: cpu, gpu or tpu.
        task_loss: used if the method cuts the network.

    Raises:
        ValueError: a value of `config.local` that is unknown, out of range or does not fit the network.
    """
    local, pairs = config.local, config.method in PAIR_RULES
    boundaries: Any = boundary_names(local.boundaries)
    if boundaries == "published":
        boundaries = balanced_memory(network, local.modules, data=config.data.name)
    elif boundaries == "balanced":
        boundaries = "equal"  # until `planning` has measured
    elif boundaries in _RULES:
        boundaries = _RULES[boundaries](network, local.modules)
    pixels = PixelScale(data.augmentation.mean, data.augmentation.std)
    return cut(
        network,
        local.modules,
        classes=data.classes,
        boundaries=boundaries,
        context="R0" if pairs else local.context,
        image_encoder=local.image_encoder,
        auxiliary=auxiliary,
        head=local.head if auxiliary.uses_head else None,
        loss="softmax" if pairs else local.loss,
        task_loss=task_loss if pairs or config.method == "contsup" else TaskLoss(),
        decoder=pixels if local.decoder else None,
        loss_scale=(1.0, 1.0, 1.0, 1.0) if pairs else _loss_scale(config, network, boundaries),
        aux_width=local.aux_width,
        feature_width=local.feature_width,
        remat=_remat(local.remat, platform),
        channels_at_once=16 if platform == "cpu" else 8,
        dtype=DTYPES[config.network.dtype],
    )


def auxiliary_from_config(config: ConfigDict, data: DatasetSpec, *, fresh_teachers: bool) -> AuxiliaryRule:
    """The rule that `local.auxiliary` names, with its hyper-parameters.

    Raises:
        ValueError: the teacher is missing or does not fit.
        ModuleNotFoundError: a file of weights needs PyTorch, which is not installed.
    """
    name = config.local.auxiliary
    if locally_taught(config):
        (teacher,) = teachers_of(config, data, fresh=fresh_teachers)
        return TeacherRule(teacher, data.shape, StoneLoss(**config[TEACHER_GROUP].to_dict()))
    if name == TEACHER or config.method in PAIR_RULES:
        return HeadRule()
    return AUXILIARIES[name](**(config[name].to_dict() if name in AUXILIARY_PARAMETERS else {}))


def _loss_scale(config: ConfigDict, network: Network, boundaries: str | Sequence[str]) -> Any:
    """The weights of reconstruction and head, see `cut`; the published ones are those of the auxiliary network."""
    local = config.local
    if local.loss_scale != "published":
        return numbers("local.loss_scale", local.loss_scale, "'published', or four numbers", "5,0.05,0.2,0.5")
    if local.auxiliary == "momentum" and local.decoder:
        names = equal_layers(network, local.modules) if isinstance(boundaries, str) else boundaries
        return man_loss_weights(network, check_boundaries(network, names))
    balanced = local.boundaries == "published"
    return published_loss_scale(config.network.name, config.data.name, local.modules, balanced=balanced)


def _remat(text: str, platform: str) -> tuple[str, ...]:
    """The names in a text such as `blocks,head`; `auto` is `contexts`, and on a GPU nothing.

    Image encoders convolve at full resolution at every boundary. If their activations were stored, the peak would not
    fall with the number of modules on a CPU or TPU. On a GPU, recomputed contexts save less memory, and a step takes
    twice the time (docs/accelerators.md).
    """
    if text == "auto":
        return () if platform == "gpu" else ("contexts",)
    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in REMATERIALIZABLE:
            raise unknown("name in remat", name, ("auto", "none", *REMATERIALIZABLE))
    return names
