"""Distillation: a student learns from frozen teachers, by Block-KD's stepping stones or by another objective."""

from kd_local.distill.connector import Connector
from kd_local.distill.distillation import Distillation
from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.objective import (
    EvaluationBatch,
    Objective,
    ObjectiveLoss,
    Outputs,
    Pair,
    StrongView,
    TrainingBatch,
)
from kd_local.distill.objectives.block_kd import BlockKD
from kd_local.distill.objectives.combined import Combined
from kd_local.distill.objectives.distances import DISTANCES, logit_distance
from kd_local.distill.objectives.fcfd import FCFD
from kd_local.distill.objectives.kd import KD
from kd_local.distill.objectives.registry import OBJECTIVES
from kd_local.distill.outputs import output_shapes, outputs
from kd_local.distill.stone_loss import StoneLoss
from kd_local.distill.taught_contsup import TaughtContSup
from kd_local.distill.teacher import Renormalisation, Teacher
from kd_local.distill.teacher_auxiliary import TeacherRule

__all__ = [
    "DISTANCES",
    "FCFD",
    "KD",
    "OBJECTIVES",
    "BlockKD",
    "Combined",
    "Connector",
    "Distillation",
    "EvaluationBatch",
    "LogitObjective",
    "Objective",
    "ObjectiveLoss",
    "Outputs",
    "Pair",
    "Renormalisation",
    "StoneLoss",
    "StrongView",
    "TaughtContSup",
    "Teacher",
    "TeacherRule",
    "TrainingBatch",
    "logit_distance",
    "output_shapes",
    "outputs",
]
