"""The options of a step that a config gives."""

from ml_collections import ConfigDict

from kd_local.parallel import StepOptions


def step_options(config: ConfigDict) -> StepOptions:
    """The step's options but for its placement, which is balanced, by multiply-adds or by time.

    Raises:
        ValueError: see `StepOptions`.
    """
    return StepOptions(form=config.step, shard=config.mesh.shard, batch_norm=config.mesh.batch_norm)
