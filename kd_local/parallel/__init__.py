"""Meshes of devices, and the one place where programs are compiled."""

from kd_local.parallel.execution import FORMS, NOTHING, Call, Piece, Step, compile_lowered
from kd_local.parallel.mesh import data_mesh, on_every_device, over_the_batch

__all__ = [
    "FORMS",
    "NOTHING",
    "Call",
    "Piece",
    "Step",
    "compile_lowered",
    "data_mesh",
    "on_every_device",
    "over_the_batch",
]
