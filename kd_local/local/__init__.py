"""Gradient-isolated local learning, and end-to-end training for comparison."""

from kd_local.choices.local import HEADS, REMATERIALIZABLE
from kd_local.local.auxiliaries.auglocal import AugLocal
from kd_local.local.auxiliaries.head import HeadRule
from kd_local.local.auxiliaries.momentum import Momentum
from kd_local.local.auxiliaries.registry import AUXILIARIES
from kd_local.local.auxiliary import Auxiliary, AuxiliaryRule
from kd_local.local.contexts import Context
from kd_local.local.contsup import ContSup
from kd_local.local.cut import cut
from kd_local.local.cut_network import CutNetwork, LocalOutputs
from kd_local.local.decoders import PixelScale
from kd_local.local.end_to_end import EndToEnd
from kd_local.local.hpff import HPFF
from kd_local.local.loss_scales import man_loss_weights, published_loss_scale
from kd_local.local.losses import LOSSES
from kd_local.local.mlaan import MLAAN
from kd_local.local.module import LocalModule
from kd_local.local.pair import PairRule
from kd_local.local.pairs import PAIR_RULES, PairTraining
from kd_local.local.partition import (
    balanced_memory,
    check_boundaries,
    equal_layers,
    man_boundaries,
    man_number,
    man_plus_boundaries,
    single_blocks,
    stage_boundaries,
)
from kd_local.local.probes import probe_accuracy
from kd_local.local.task_loss import TaskLoss, balanced_class_weights

__all__ = [
    "AUXILIARIES",
    "HEADS",
    "HPFF",
    "LOSSES",
    "MLAAN",
    "PAIR_RULES",
    "REMATERIALIZABLE",
    "AugLocal",
    "Auxiliary",
    "AuxiliaryRule",
    "ContSup",
    "Context",
    "CutNetwork",
    "EndToEnd",
    "HeadRule",
    "LocalModule",
    "LocalOutputs",
    "Momentum",
    "PairRule",
    "PairTraining",
    "PixelScale",
    "TaskLoss",
    "balanced_class_weights",
    "balanced_memory",
    "check_boundaries",
    "cut",
    "equal_layers",
    "man_boundaries",
    "man_loss_weights",
    "man_number",
    "man_plus_boundaries",
    "probe_accuracy",
    "published_loss_scale",
    "single_blocks",
    "stage_boundaries",
]
