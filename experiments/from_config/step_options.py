"""Builds the options of a step from a config."""

from dataclasses import replace

from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.configs.contradictions import step_form
from kd_local.data import Data
from kd_local.parallel import SEPARATE, StepOptions
from kd_local.training.calls import default_options
from kd_local.training.image_source import fit_on_devices
from kd_local.training.records import TrainingPlan


def step_options(config: ConfigDict) -> StepOptions:
    """The step's options, without a placement: it is balanced later, by multiply-adds or by time.

    Raises:
        ValueError: see `StepOptions`.
    """
    form, steps = step_form(config)
    return StepOptions(
        form=form,
        steps_per_call=steps,
        shard=config.mesh.shard,
        batch_norm=config.mesh.batch_norm,
    )


def call_options(
    config: ConfigDict, options: StepOptions, data: Data, plan: TrainingPlan, mesh: Mesh
) -> tuple[StepOptions, bool]:
    """`(options, whether the devices hold the images)`: the defaults of the devices where the config has no value."""
    on_devices = fit_on_devices(data, mesh) if config.data.on_devices is None else config.data.on_devices
    if config.steps_per_call is None and config.step != SEPARATE:
        chosen = default_options(plan, len(data.train) // config.batch_size, mesh, on_devices=on_devices)
        if chosen.steps_per_call > 1:
            options = replace(options, form=chosen.form, steps_per_call=chosen.steps_per_call)
    return options, on_devices
