"""Predicts and measures the memory of a training step, and chooses cuts of a network by it."""

from kd_local.choices.steps import TARGETS
from kd_local.memory.balance import MeasuredCut, balance
from kd_local.memory.compilations import CompilationRecord, CompilationRecords
from kd_local.memory.fit import Fit, fit
from kd_local.memory.footprint import (
    Footprint,
    PieceFootprint,
    call_footprint,
    compiled_peak,
    floor_bytes,
    footprint,
    plan_for,
)
from kd_local.memory.groups import GroupFootprint, group_footprints, roofline_seconds
from kd_local.memory.naive import SummedLosses
from kd_local.memory.observed import observed_peak
from kd_local.memory.saved import own_activations, saved_activations, saved_bytes
from kd_local.memory.targets import Target, target

__all__ = [
    "TARGETS",
    "CompilationRecord",
    "CompilationRecords",
    "Fit",
    "Footprint",
    "GroupFootprint",
    "MeasuredCut",
    "PieceFootprint",
    "SummedLosses",
    "Target",
    "balance",
    "call_footprint",
    "compiled_peak",
    "fit",
    "floor_bytes",
    "footprint",
    "group_footprints",
    "observed_peak",
    "own_activations",
    "plan_for",
    "roofline_seconds",
    "saved_activations",
    "saved_bytes",
    "target",
]
