"""Cuts the network into modules as a config says: boundaries, contexts, heads and rematerialisation."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.from_config.numbers import numbers
from experiments.from_config.teachers import DTYPES
from kd_local.data import DatasetSpec
from kd_local.errors import unknown
from kd_local.local import (
    REMATERIALIZABLE,
    CutNetwork,
    PixelScale,
    TaskLoss,
    balanced_memory,
    cut,
    published_loss_scale,
)
from kd_local.networks import Network
from kd_local.sizes import parse_bytes

BOUNDARY_RULES = ("equal", "balanced", "published")


def cut_from_config(
    config: ConfigDict, network: Network, data: DatasetSpec, platform: str, task_loss: TaskLoss
) -> CutNetwork:
    """The network cut into modules as `config.local` says. In place of balanced boundaries it has equal ones.

    `platform` is the platform to compile for: cpu, gpu or tpu. `task_loss` is used if the method is contsup.

    Raises:
        ValueError: a value of `config.local` that is unknown, out of range or does not fit the network.
    """
    local = config.local
    boundaries: Any = local.boundaries if local.boundaries in BOUNDARY_RULES else _names(local.boundaries)
    if boundaries == "published":
        boundaries = balanced_memory(network, local.modules, data=config.data.name)
    elif boundaries == "balanced":
        boundaries = "equal"  # until `planning` has measured
    elif isinstance(boundaries, str) and boundaries != "equal":
        raise ValueError(f"{unknown('rule for boundaries', boundaries, BOUNDARY_RULES)}; or blocks: stem,stage1/0")
    if local.loss_scale == "published":
        balanced = local.boundaries == "published"
        scale: Sequence[float] = published_loss_scale(
            config.network.name, config.data.name, local.modules, balanced=balanced
        )
    else:
        scale = numbers("local.loss_scale", local.loss_scale, "'published', or four numbers", "5,0.05,0.2,0.5")
    pixels = PixelScale(data.augmentation.mean, data.augmentation.std)
    return cut(
        network,
        local.modules,
        classes=data.classes,
        boundaries=boundaries,
        context=local.context,
        image_encoder=local.image_encoder,
        head=local.head,
        loss=local.loss,
        task_loss=task_loss if config.method == "contsup" else TaskLoss(),
        decoder=pixels if local.decoder else None,
        loss_scale=scale,
        aux_width=local.aux_width,
        feature_width=local.feature_width,
        remat=_remat(local.remat),
        channels_at_once=16 if platform == "cpu" else 8,
        dtype=DTYPES[config.network.dtype],
    )


def check_measurements(config: ConfigDict) -> None:
    """Checks what a config leaves to measurement: a memory budget, and boundaries that balance the modules' memory.

    Raises:
        ValueError: the budget is not a number of bytes, or the step is joined, which is not measured.
    """
    budget = config.local.memory_budget
    if budget is not None:
        parse_bytes(budget)
    if config.step != "separate" and (budget is not None or config.local.boundaries == "balanced"):
        raise ValueError(
            f"step is {config.step!r}, but balanced boundaries and memory budgets need separate executables: "
            "use step=separate, or boundaries by name"
        )


def _remat(text: str) -> tuple[str, ...]:
    """The names in a text such as `blocks,head`; `auto` is `contexts`.

    Image encoders convolve at full resolution at every boundary. If their activations were stored, the peak would not
    fall with the number of modules.
    """
    if text == "auto":
        return ("contexts",)
    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in REMATERIALIZABLE:
            raise unknown("name in remat", name, ("auto", "none", *REMATERIALIZABLE))
    return names


def _names(boundaries: str) -> tuple[str, ...] | str:
    """The names in a text such as `stem,stage1/0`. A single word without a slash is a rule, unless it is `stem`."""
    names = tuple(name.strip() for name in boundaries.split(","))
    return names if len(names) > 1 or "/" in boundaries or boundaries == "stem" else boundaries
