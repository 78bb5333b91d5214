"""Meshes of devices, the compilation of programs, and the step that runs them. Nothing else compiles programs."""

from kd_local.choices.steps import BATCH_NORMS, FORMS, JOINED, SEPARATE, SHARDED
from kd_local.parallel.many_steps import Inputs, ManySteps, MetricsOfSteps, compile_many, lower_many
from kd_local.parallel.mesh import (
    DATA,
    MODULE,
    all_devices,
    batch_shardings,
    device_mesh,
    groups,
    on_every_device,
    over_the_batch,
    with_shardings,
)
from kd_local.parallel.options import StepOptions
from kd_local.parallel.pieces import Call, Piece, compile_lowered, extra_names
from kd_local.parallel.placement import balanced_placement, transfers_between_groups, with_next
from kd_local.parallel.plan import NOTHING, StepPlan, check_step, offered_tensors, plan_step
from kd_local.parallel.sharding import part_shardings
from kd_local.parallel.step import CompiledStep, Watch, compile_plan, compile_step
from kd_local.parallel.timeline import Span, Timeline, recorded
from kd_local.parallel.transfer import move, put_rows

__all__ = [
    "BATCH_NORMS",
    "DATA",
    "FORMS",
    "JOINED",
    "MODULE",
    "NOTHING",
    "SEPARATE",
    "SHARDED",
    "Call",
    "CompiledStep",
    "Inputs",
    "ManySteps",
    "MetricsOfSteps",
    "Piece",
    "Span",
    "StepOptions",
    "StepPlan",
    "Timeline",
    "Watch",
    "all_devices",
    "balanced_placement",
    "batch_shardings",
    "check_step",
    "compile_lowered",
    "compile_many",
    "compile_plan",
    "compile_step",
    "device_mesh",
    "extra_names",
    "groups",
    "lower_many",
    "move",
    "offered_tensors",
    "on_every_device",
    "over_the_batch",
    "part_shardings",
    "plan_step",
    "put_rows",
    "recorded",
    "transfers_between_groups",
    "with_next",
    "with_shardings",
]
