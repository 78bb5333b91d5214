"""Meshes of devices, the one place where programs are compiled, and the step that runs them."""

from kd_local.parallel.mesh import (
    DATA,
    MODULE,
    all_devices,
    batch_shardings,
    data_mesh,
    device_mesh,
    groups,
    on_every_device,
    over_the_batch,
)
from kd_local.parallel.pieces import FORMS, Call, Piece, compile_lowered
from kd_local.parallel.placement import contiguous, hops
from kd_local.parallel.sharding import SHARDED, part_shardings
from kd_local.parallel.step import BATCH_NORMS, NOTHING, Step
from kd_local.parallel.timeline import Span, Timeline, recording
from kd_local.parallel.transfer import move, put_rows

__all__ = [
    "BATCH_NORMS",
    "DATA",
    "FORMS",
    "MODULE",
    "NOTHING",
    "SHARDED",
    "Call",
    "Piece",
    "Span",
    "Step",
    "Timeline",
    "all_devices",
    "batch_shardings",
    "compile_lowered",
    "contiguous",
    "data_mesh",
    "device_mesh",
    "groups",
    "hops",
    "move",
    "on_every_device",
    "over_the_batch",
    "part_shardings",
    "put_rows",
    "recording",
]
