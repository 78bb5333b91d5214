"""The scale of a comparison: the published protocol, or a short run that two CPU cores can train."""

from ml_collections import ConfigDict

from kd_local.errors import unknown

SCALES = ("published", "short")
SHORT_STEPS, SHORT_BATCH = 781, 32
"""Half a pass over 50,000 images."""


def scaled(config: ConfigDict, scale: str) -> ConfigDict:
    """The config at a scale.

    `short` is half a pass over the 50,000 images of CIFAR-10 in 781 steps of 32, in place of 240 to 400 passes. The
    learning rate is proportional to the batch. `optimizer.schedule_steps` compresses the whole published schedule, with
    its warm-up, its milestones and the warm-up of objectives, to these steps.

    Raises:
        ValueError: the scale is unknown.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if scale == "short":
        share = SHORT_BATCH / config.batch_size
        config.batch_size = SHORT_BATCH
        config.optimizer.learning_rate *= share
        if config.optimizer.warmup_epochs:
            config.optimizer.warmup_rate = 0.01 * share
        config.steps = config.optimizer.schedule_steps = SHORT_STEPS
    return config


def accumulated(config: ConfigDict, batches: int) -> ConfigDict:
    """The config with each update's images in several batches, which need less memory.

    Raises:
        ValueError: the number of images is no multiple of the number of batches.
    """
    if config.batch_size % batches:
        raise ValueError(
            f"accumulate is {batches}, but an update has {config.batch_size} images: use a divisor of this number"
        )
    config.batch_size //= batches
    config.optimizer.accumulate = batches
    for group, key in ((config, "steps"), (config.optimizer, "schedule_steps")):
        if group[key] is not None:
            group[key] *= batches
    return config
