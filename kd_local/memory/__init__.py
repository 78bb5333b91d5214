"""Measure and plan: what a method needs of a device's memory, on which device, at which number of modules."""

from kd_local.memory.executables import Executable, Executables
from kd_local.memory.footprint import Footprint, PieceFootprint, footprint, step_calls
from kd_local.memory.targets import TARGETS, Target, target

__all__ = [
    "TARGETS",
    "Executable",
    "Executables",
    "Footprint",
    "PieceFootprint",
    "Target",
    "footprint",
    "step_calls",
    "target",
]
