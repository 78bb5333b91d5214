"""Builds the options of a step from a config."""

from ml_collections import ConfigDict

from kd_local.parallel import StepOptions


def step_options(config: ConfigDict) -> StepOptions:
    """The step's options, without a placement: it is balanced later, by multiply-adds or by time.

    Raises:
        ValueError: see `StepOptions`.
    """
    return StepOptions(form=config.step, shard=config.mesh.shard, batch_norm=config.mesh.batch_norm)
