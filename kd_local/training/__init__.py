"""The training loop with its checkpoints, schedules and logs."""

from kd_local.choices.optimization import OPTIMIZERS, SCHEDULES
from kd_local.training.checkpoints import CheckpointError, Checkpoints
from kd_local.training.evaluation import evaluate
from kd_local.training.finite import CHECK_EVERY, NotFiniteError, check_finite
from kd_local.training.loop import Result, train
from kd_local.training.optimizers import make_optimizer
from kd_local.training.records import EpochRecord, Observer, StepRecord, TrainingPlan
from kd_local.training.schedules import make_schedule
from kd_local.training.teacher_cache import CacheError, TeacherCache

__all__ = [
    "CHECK_EVERY",
    "OPTIMIZERS",
    "SCHEDULES",
    "CacheError",
    "CheckpointError",
    "Checkpoints",
    "EpochRecord",
    "NotFiniteError",
    "Observer",
    "Result",
    "StepRecord",
    "TeacherCache",
    "TrainingPlan",
    "check_finite",
    "evaluate",
    "make_optimizer",
    "make_schedule",
    "train",
]
