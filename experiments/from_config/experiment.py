"""Builds an `Experiment` from a config: objects of kd_local in place of the ConfigDict, which goes no further.

Everything is checked here, before data are read or anything is compiled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.configs.contradictions import check_local, has_teachers
from experiments.from_config.cutting import auxiliary_from_config, cut_from_config
from experiments.from_config.images import describe_images, read_images
from experiments.from_config.methods import CUT_METHODS, method_from_config
from experiments.from_config.start_weights import with_start
from experiments.from_config.step_options import step_options
from experiments.from_config.task_loss import task_loss
from experiments.from_config.teachers import DTYPES, teacher_networks
from kd_local.choices.optimization import check_accumulate
from kd_local.contract import Method, trained_programs
from kd_local.data import Data, DatasetSpec
from kd_local.errors import unknown
from kd_local.local import PAIR_RULES
from kd_local.models import create
from kd_local.networks import Network
from kd_local.parallel import StepOptions, check_step, device_mesh
from kd_local.training import TrainingPlan
from kd_local.training.calls import check_calls
from kd_local.training.loop import training_plan
from kd_local.training.optimizers import make_optimizer
from kd_local.training.schedules import by_batches, compressed, make_schedule, updates_per_epoch
from kd_local.two_gradients import Optimizer, with_one_gradient

PLACEMENTS = ("operations", "time")


@dataclass(frozen=True)
class Experiment:
    """The objects that a config describes.

    Attributes:
        method: the method, with network, teachers and optimizer.
        network: the network to train.
        modules: the number of modules; None if the method does not cut the network.
        context: the context of ContSup; None for other methods.
        loss: the local loss of ContSup; None for other methods.
        boundaries: the blocks after which ContSup, HPFF and MLAAN cut the network; empty for other methods.
        teachers: the names of the teachers' networks; empty for methods without teachers.
        shape: height, width and channels of the images.
        plan: the steps of the run from its beginning.
        schedule: the learning rate of each batch.
        optimizer: the optimizer of every program that trains; that with one gradient, if the method's takes two.
        mesh: the devices of the step.
        options: how the step is compiled and divided.
        read: reads the data.
    """

    method: Method
    network: Network
    modules: int | None
    context: str | None
    loss: str | None
    boundaries: tuple[str, ...]
    teachers: tuple[str, ...]
    shape: tuple[int, int, int]
    plan: TrainingPlan
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    mesh: Mesh
    options: StepOptions
    read: Callable[[], Data]


def build(config: ConfigDict, platform: str | None = None, *, fresh_teachers: bool = False) -> Experiment:
    """Builds the objects that a config describes, and checks every value.

    Balanced boundaries and memory budgets are ignored here: `experiments.from_config.planning` decides them.

    Args:
        config: the config.
        platform: the platform to compile for, cpu, gpu or tpu; None: the platform of the local devices.
        fresh_teachers: if True, the weights of teachers are zeros, balanced class weights are 1, and no file is read:
            for uses that need only shapes.

    Raises:
        ValueError: a value is unknown or out of range, or weights of a teacher are missing or do not fit.
        ModuleNotFoundError: a file of weights needs PyTorch, which is not installed.
    """
    data = describe_images(config)
    mesh = device_mesh(config.mesh.data, config.mesh.module)
    plan = training_plan(data.train, epochs=config.epochs, batch_size=config.batch_size, steps=config.steps, mesh=mesh)
    _check_run(config)
    check_local(config)
    network = _network(config, data)
    if not fresh_teachers:
        network = with_start(config, network, data)
    schedule, optimizer = _optimization(config.optimizer, plan, config.epochs)
    options = step_options(config)
    local = config.method == "contsup"
    # Cut for every method, so that a mistake in `local` is refused even if the method does not use it.
    loss = task_loss(config, data.classes, shapes_only=fresh_teachers)
    auxiliary = auxiliary_from_config(config, data, fresh_teachers=fresh_teachers)
    cut_network = cut_from_config(config, network, data, auxiliary, platform or mesh.devices.flat[0].platform, loss)
    method = method_from_config(
        config, network, cut_network, auxiliary, optimizer, data, loss, fresh_teachers=fresh_teachers
    )
    check_step(method, mesh, options)
    check_calls(plan, data.train // plan.batch_size, options.steps_per_call)
    if config.data.on_devices and data.streamed:
        raise ValueError(
            f"data.on_devices is True, but the images of {config.data.name} are streamed: use data.on_devices=false"
        )
    return Experiment(
        method=method,
        network=network,
        modules=len(trained_programs(method)) if config.method in CUT_METHODS else None,
        context=config.local.context if local else None,
        loss=config.local.loss if local else None,
        boundaries=cut_network.boundaries if local or config.method in PAIR_RULES else (),
        teachers=teacher_networks(config, fresh=fresh_teachers) if has_teachers(config) else (),
        shape=data.shape,
        plan=plan,
        schedule=schedule,
        optimizer=with_one_gradient(optimizer),
        mesh=mesh,
        options=options,
        read=partial(read_images, config, data.augmentation),
    )


def _check_run(config: ConfigDict) -> None:
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"seed is {config.seed}: use 0 to {2**32 - 1}")
    if config.checkpoint.keep < 1:
        raise ValueError(f"checkpoint.keep is {config.checkpoint.keep}: use 1 or more")
    if not 0 <= config.checkpoint.seconds < math.inf:
        raise ValueError(f"checkpoint.seconds is {config.checkpoint.seconds}: use 0 (after every step) or more")
    if config.mesh.placement not in PLACEMENTS:
        raise unknown("placement", config.mesh.placement, PLACEMENTS)


def _network(config: ConfigDict, data: DatasetSpec) -> Network:
    if config.network.dtype not in DTYPES:
        raise unknown("dtype", config.network.dtype, DTYPES)
    dtype = DTYPES[config.network.dtype]
    network = create(config.network.name, classes=data.classes, shortcut=config.network.shortcut, dtype=dtype)
    _check_images(network, data.shape)
    return network


def _check_images(network: Network, shape: tuple[int, int, int]) -> None:
    """Checks that the network accepts images of this shape. Nothing is computed."""
    jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def _optimization(settings: ConfigDict, plan: TrainingPlan, epochs: int) -> tuple[optax.Schedule, Optimizer]:
    """`(learning rate of each batch, optimizer)`."""
    each, accumulate = plan.steps_per_epoch, settings.accumulate
    check_accumulate(accumulate, min(each, plan.last_step))
    schedule = make_schedule(
        settings.schedule,
        settings.learning_rate,
        epochs=epochs,
        steps_per_epoch=updates_per_epoch(each, accumulate),
        warmup_epochs=settings.warmup_epochs,
        warmup_rate=settings.warmup_rate,
        milestones=settings.milestones,
        decay=settings.decay,
    )
    if settings.schedule_steps is not None:
        updates = epochs * updates_per_epoch(each, accumulate)
        schedule = compressed(schedule, updates=updates, to=max(1, round(settings.schedule_steps / accumulate)))
    optimizer = make_optimizer(
        settings.name,
        schedule,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        accumulate=accumulate,
        batches_per_epoch=each,
        dot=settings.dot,
    )
    return by_batches(schedule, batches_per_epoch=each, accumulate=accumulate), optimizer


def count_parameters(tree: Any) -> int:
    """The number of scalars in a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
