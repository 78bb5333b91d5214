"""Gradient-isolated local learning, and end-to-end training for comparison."""

from kd_local.choices.local import HEADS, REMATERIALIZABLE
from kd_local.local.contexts import Context
from kd_local.local.contsup import ContSup
from kd_local.local.cut import CutNetwork, LocalOutputs, cut
from kd_local.local.decoders import PixelScale
from kd_local.local.end_to_end import EndToEnd
from kd_local.local.loss_scales import published_loss_scale
from kd_local.local.losses import LOSSES
from kd_local.local.module import LocalModule
from kd_local.local.partition import balanced_memory, check_boundaries, equal_layers
from kd_local.local.probes import probe_accuracy
from kd_local.local.task_loss import TaskLoss, balanced_class_weights

__all__ = [
    "HEADS",
    "LOSSES",
    "REMATERIALIZABLE",
    "ContSup",
    "Context",
    "CutNetwork",
    "EndToEnd",
    "LocalModule",
    "LocalOutputs",
    "PixelScale",
    "TaskLoss",
    "balanced_class_weights",
    "balanced_memory",
    "check_boundaries",
    "cut",
    "equal_layers",
    "probe_accuracy",
    "published_loss_scale",
]
