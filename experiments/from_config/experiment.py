"""From a config to what it describes: the border that no ConfigDict crosses. Everything is checked here, before data
are read or anything is compiled."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.from_config.step_options import step_options
from experiments.from_config.teachers import DTYPES, teachers
from kd_local.contract import Method, trained_programs
from kd_local.data import Augmentation, Data, Description, describe, load
from kd_local.distill import OBJECTIVES, Distillation, LocalDistillation, Objective, StoneLoss
from kd_local.errors import unknown
from kd_local.local import (
    REMATERIALIZABLE,
    ContSup,
    CutNetwork,
    EndToEnd,
    PixelScale,
    balanced_memory,
    cut,
    published_loss_scale,
)
from kd_local.models import create
from kd_local.networks import Network
from kd_local.parallel import StepOptions, check_step, device_mesh
from kd_local.sizes import parse_bytes
from kd_local.training.loop import training_plan
from kd_local.training.optimizers import make_optimizer
from kd_local.training.schedules import by_batches, make_schedule, updates_per_epoch

PLACEMENTS = ("operations", "time")
CUT_METHODS = ("contsup", "local_distillation")
"""Methods that train each module by a program of its own."""
BOUNDARY_RULES = ("equal", "balanced", "published")


@dataclass(frozen=True)
class Experiment:
    """A config in the package's own terms.

    Attributes:
        modules: the number of modules; None if the method does not cut the network.
        context: of ContSup; None end to end.
        loss: the local loss of ContSup; None end to end.
        boundaries: the blocks behind which the network is cut.
        shape: height, width and channels of the images.
        schedule: the learning rate of each batch.
        mesh, options: of the step.
        read: reads the data.
    """

    method: Method
    network: Network
    modules: int | None
    context: str | None
    loss: str | None
    boundaries: tuple[str, ...]
    shape: tuple[int, int, int]
    schedule: optax.Schedule
    mesh: Mesh
    options: StepOptions
    read: Callable[[], Data]


def build(config: ConfigDict, platform: str | None = None, *, fresh_teachers: bool = False) -> Experiment:
    """What a config describes.

    `platform` (cpu, gpu or tpu) is that of the local devices unless given. Balanced boundaries and memory budgets are
    ignored here: `experiments.from_config.planning` finds them. With `fresh_teachers`, the weights of teachers are
    zeros and no file is read, for uses that need shapes only.

    Raises:
        ValueError: a value that is unknown or out of range, or weights of a teacher that are missing or do not fit.
        ModuleNotFoundError: weights of PyTorch, which is not installed.
    """
    data = describe(
        config.data.name,
        data_dir=config.data.data_dir,
        image_size=config.data.image_size,
        train_examples=config.data.train_examples,
        validation_examples=config.data.validation_examples,
    )
    data = replace(data, augmentation=_augmentation(config, data.augmentation))
    mesh = device_mesh(config.mesh.data, config.mesh.module)
    plan = training_plan(data.train, epochs=config.epochs, batch_size=config.batch_size, steps=config.steps, mesh=mesh)
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed is {config.seed}: use 0 to {2**32 - 1}")
    if config.checkpoint.keep < 1:
        raise ValueError(f"checkpoint.keep is {config.checkpoint.keep}: use 1 or more")
    if not 0 <= config.checkpoint.seconds < math.inf:
        raise ValueError(f"checkpoint.seconds is {config.checkpoint.seconds}: use 0 (after every step) or more")
    if config.network.dtype not in DTYPES:
        raise unknown("dtype", config.network.dtype, DTYPES)
    dtype = DTYPES[config.network.dtype]
    network = create(config.network.name, classes=data.classes, shortcut=config.network.shortcut, dtype=dtype)
    # Whether the network takes images of this size.
    jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *data.shape), jnp.float32))
    optimizing = config.optimizer.to_dict()
    each, accumulate = plan.steps_per_epoch, optimizing["accumulate"]
    updates_per_epoch(min(each, plan.last_step), accumulate)  # refuses what a run is too short for
    schedule = make_schedule(
        optimizing["schedule"],
        optimizing["learning_rate"],
        epochs=config.epochs,
        steps_per_epoch=updates_per_epoch(each, accumulate),
        warmup_epochs=optimizing["warmup_epochs"],
        warmup_rate=optimizing["warmup_rate"],
        milestones=optimizing["milestones"],
        decay=optimizing["decay"],
    )
    optimizer = make_optimizer(
        optimizing["name"],
        schedule,
        momentum=optimizing["momentum"],
        nesterov=optimizing["nesterov"],
        weight_decay=optimizing["weight_decay"],
        accumulate=accumulate,
        batches_per_epoch=each,
    )
    # Cut whatever the method is: a mistake in `local` is one even where it is not used.
    if config.mesh.placement not in PLACEMENTS:
        raise unknown("placement", config.mesh.placement, PLACEMENTS)
    options = step_options(config)
    cut_network = _cut(config, network, data, dtype, platform or mesh.devices.flat[0].platform)
    if config.local.memory_budget is not None:
        parse_bytes(config.local.memory_budget)
    if config.step != "separate" and (config.local.memory_budget is not None or config.local.boundaries == "balanced"):
        raise ValueError(
            f"step is {config.step!r}, but boundaries are balanced, and memory budgets kept, for separate executables: "
            "use step=separate, or boundaries by name"
        )
    local_method = ContSup(cut_network, optimizer, config.local.answer)
    objectives = {name: kind(**_numbers_of(config[name])) for name, kind in OBJECTIVES.items()}
    stone_loss = StoneLoss(**_numbers_of(config.local_distillation))

    def taught_by(objective: Objective) -> Method:
        method = Distillation(
            network,
            teachers(config, classes=data.classes, shape=data.shape, fresh=fresh_teachers),
            objective,
            optimizer,
            examples=data.train,
            cached=config.teacher.cache is not None,
        )
        # Stages that are not there and the like show when connectors are made, here by their shapes only.
        jax.eval_shape(method.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *data.shape), jnp.float32))
        return method

    def taught_locally() -> Method:
        found = teachers(config, classes=data.classes, shape=data.shape, fresh=fresh_teachers)
        if len(found) > 1:
            raise ValueError(f"{len(found)} teachers for local_distillation: give one, or use another method")
        return LocalDistillation(network, found[0], stone_loss, optimizer, data.shape)

    methods: dict[str, Callable[[], Method]] = {
        "contsup": lambda: local_method,
        "end_to_end": lambda: EndToEnd(network, optimizer, config.end_to_end.remat),
        **{name: partial(taught_by, objective) for name, objective in objectives.items()},
        "local_distillation": taught_locally,
    }
    if config.method not in methods:
        raise unknown("method", config.method, methods)
    if config.teacher.cache is not None and config.method not in objectives:
        raise ValueError(
            f"teacher.cache is set, but {config.method} reads no teacher's logits that could be cached: leave it out"
        )
    local = config.method == "contsup"
    method = methods[config.method]()
    check_step(method, mesh, options)
    return Experiment(
        method=method,
        network=network,
        modules=len(trained_programs(method)) if config.method in CUT_METHODS else None,
        context=config.local.context if local else None,
        loss=config.local.loss if local else None,
        boundaries=cut_network.boundaries if local else (),
        shape=data.shape,
        schedule=by_batches(schedule, batches_per_epoch=each, accumulate=accumulate),
        mesh=mesh,
        options=options,
        read=lambda: replace(
            load(
                config.data.name,
                data_dir=None if config.data.data_dir is None else Path(config.data.data_dir),
                image_size=config.data.image_size,
                workers=config.data.workers,
                train_examples=config.data.train_examples,
                validation_examples=config.data.validation_examples,
            ),
            augmentation=data.augmentation,
        ),
    )


def _numbers_of(section: ConfigDict) -> dict[str, Any]:
    """The hyper-parameters of an objective. JSON has lists for tuples; a config has text for the numbers of stones."""
    numbers: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in section.to_dict().items()
    }
    if "stones" in numbers:
        numbers["stones"] = _stones(numbers["stones"])
    return numbers


def _stones(text: str) -> tuple[int, ...] | str:
    """`2,3` or `(2, 3)` as numbers; any other text unchanged: the objective knows which text it takes."""
    try:
        return tuple(int(number) for number in text.strip("()").split(","))
    except ValueError:
        return text


def _augmentation(config: ConfigDict, usual: Augmentation) -> Augmentation:
    changed = usual if config.data.augment else replace(usual, pad=0, flip=False)
    return replace(changed, mean=_of_channels(config, "mean", usual.mean), std=_of_channels(config, "std", usual.std))


def _of_channels(config: ConfigDict, name: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    if config.data[name] is None:
        return usual
    lowest, interval = (0.0, "[0, 1]") if name == "mean" else (math.ulp(0.0), "(0, 1]")
    expected, example = f"a number in {interval} for each of the {len(usual)} channels", _fractions(usual)
    numbers = _numbers(f"data.{name}", config.data[name], expected, example)
    if len(numbers) == len(usual) and all(lowest <= number <= 1 for number in numbers):
        return tuple(255 * number for number in numbers)
    if len(numbers) == len(usual) and all(lowest <= number <= 255 for number in numbers):
        example = f"{_fractions(numbers)} (these divided by 255)"
    raise ValueError(f"data.{name} is {config.data[name]!r}: use {expected}, such as {example}")


def _fractions(pixels: Sequence[float]) -> str:
    return ",".join(f"{value / 255:.4g}" for value in pixels)


def _cut(config: ConfigDict, network: Network, data: Description, dtype: Any, platform: str) -> CutNetwork:
    local = config.local
    boundaries: Any = local.boundaries if local.boundaries in BOUNDARY_RULES else _names(local.boundaries)
    if boundaries == "published":
        boundaries = balanced_memory(network, local.modules, data=config.data.name)
    elif boundaries == "balanced":
        boundaries = "equal"  # until `planning` has measured
    elif isinstance(boundaries, str) and boundaries != "equal":
        raise unknown("rule for boundaries", boundaries, BOUNDARY_RULES)
    if local.loss_scale == "published":
        balanced = local.boundaries == "published"
        scale: Sequence[float] = published_loss_scale(
            config.network.name, config.data.name, local.modules, balanced=balanced
        )
    else:
        scale = _numbers("local.loss_scale", local.loss_scale, "'published', or four numbers", "5,0.05,0.2,0.5")
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
        decoder=pixels if local.decoder else None,
        loss_scale=scale,
        aux_width=local.aux_width,
        feature_width=local.feature_width,
        remat=_remat(local.remat),
        channels_at_once=16 if platform == "cpu" else 8,
        dtype=dtype,
    )


def _remat(text: str) -> tuple[str, ...]:
    """The names in `blocks,head`; `auto` is `contexts`. Image encoders convolve at full resolution at every boundary:
    if their activations were kept, the peak would not fall with the number of modules."""
    if text == "auto":
        return ("contexts",)
    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in REMATERIALIZABLE:
            raise unknown("name in remat", name, ("auto", "none", *REMATERIALIZABLE))
    return names


def _numbers(key: str, text: str, expected: str, example: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{key} is {text!r}: use {expected} with commas between, such as {example}") from None


def _names(boundaries: str) -> tuple[str, ...] | str:
    """`stem,stage1/0` as names; a single word that is no block's name is left to `cut`, as a rule."""
    names = tuple(name.strip() for name in boundaries.split(","))
    return names if len(names) > 1 or "/" in boundaries or boundaries == "stem" else boundaries


def count_parameters(tree: Any) -> int:
    """The number of scalars in a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
