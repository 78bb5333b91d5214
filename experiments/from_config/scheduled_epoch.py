"""The epoch that objectives of distillation see if the schedule is compressed."""

import numpy as np
from jaxtyping import Float32, Int64
from ml_collections import ConfigDict

from kd_local.training import TrainingPlan
from kd_local.training.inputs import ExtraTensor


def scheduled_epoch(config: ConfigDict, plan: TrainingPlan) -> dict[str, ExtraTensor]:
    """The tensor `epoch`, counted from 1, if `optimizer.schedule_steps` is set: the epoch of the compressed schedule.

    So the warm-up of an objective has the same share of the run as in a run with all epochs. Without the key the loop
    provides the epoch of the images.
    """
    steps = config.optimizer.schedule_steps
    if steps is None:
        return {}
    of_all_epochs = config.epochs * plan.steps_per_epoch

    def epoch(step: int, chosen: Int64[np.ndarray, " batch"]) -> Float32[np.ndarray, ""]:
        return np.asarray(step * of_all_epochs // steps // plan.steps_per_epoch + 1, np.float32)

    return {"epoch": epoch}
