"""The loop, and what surrounds it: checkpoints, schedules, logs."""

from kd_local.training.checkpoints import CheckpointError, Checkpoints
from kd_local.training.evaluation import evaluate
from kd_local.training.loop import Observer, Result, train
from kd_local.training.metrics import NotFiniteError
from kd_local.training.optimizers import OPTIMIZERS, make_optimizer
from kd_local.training.schedules import SCHEDULES, make_schedule
from kd_local.training.teacher_cache import CacheError, TeacherCache

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "CacheError",
    "CheckpointError",
    "Checkpoints",
    "NotFiniteError",
    "Observer",
    "Result",
    "TeacherCache",
    "evaluate",
    "make_optimizer",
    "make_schedule",
    "train",
]
