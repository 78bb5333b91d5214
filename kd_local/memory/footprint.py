"""Peak device memory of a training step, from XLA's memory analysis; nothing is executed.

    peak = max over the pieces of a step of (temporary + arguments + outputs - aliased of the piece
           + state of all other pieces + tensors carried past the piece)

Reference: XLA's buffer assignment, as reported by `jax.stages.Compiled.memory_analysis` in bytes of one device.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kd_local.contract import Method, owner
from kd_local.costs import tree_bytes
from kd_local.data.pixels import check_image_shape
from kd_local.errors import check_type
from kd_local.memory.compilations import CompilationRecord, CompilationRecords
from kd_local.memory.targets import Target
from kd_local.parallel import (
    SEPARATE,
    Call,
    CompiledStep,
    ManySteps,
    StepOptions,
    StepPlan,
    extra_names,
    offered_tensors,
    plan_step,
)
from kd_local.ranges import Number

_BATCH = Number(1, 10**9, whole=True, note="images of a step")


@dataclass(frozen=True)
class PieceFootprint:
    """The memory of a device while one piece of a step runs, in bytes.

    Attributes:
        name: the name of the piece's first program.
        compilation: the record of its executable.
        state: the state of all programs: parameters, statistics, optimizer state, and parts that are only read.
        carried: tensors that the piece reads or writes, and tensors kept for later pieces.
        peak: all memory of the step while the piece runs.
    """

    name: str
    compilation: CompilationRecord
    state: int
    carried: int
    peak: int


@dataclass(frozen=True)
class Footprint:
    """The memory and the work of a step.

    Attributes:
        pieces: the pieces in the order in which they run.
        flops: twice the multiply-adds of convolutions and matrix products in forward and backward passes, over all
            devices, recomputation included.
        executables: number of different executables.
        compile_seconds: duration of their compilations, which may be from an earlier process.
    """

    pieces: tuple[PieceFootprint, ...]
    flops: int
    executables: int
    compile_seconds: float

    @property
    def largest(self) -> PieceFootprint:
        """The piece with the highest peak."""
        return max(self.pieces, key=lambda piece: piece.peak)

    @property
    def peak_bytes(self) -> int:
        """Peak bytes of one device in the step."""
        return self.largest.peak

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of all programs."""
        return self.largest.state

    @property
    def carried_bytes(self) -> int:
        """Bytes of the tensors carried between pieces while the largest piece runs."""
        return self.largest.carried

    @property
    def temp_bytes(self) -> int:
        """Bytes of the temporary memory of the largest piece."""
        return self.largest.compilation.temp_bytes


def footprint(
    method: Method,
    shape: tuple[int, int, int],
    batch: int,
    target: Target,
    *,
    options: StepOptions = StepOptions(),
    records: CompilationRecords | None = None,
) -> Footprint:
    """The memory and the work of a method's training step.

    >>> footprint(method, (32, 32, 3), 256, target()).peak_bytes  # doctest: +SKIP

    Args:
        method: the method.
        shape: height, width and channels of the images (float32).
        batch: images of a step, over all devices of the target.
        target: the devices to compile for.
        options: how the step is compiled and divided.
        records: known compilations; new ones are added.

    Raises:
        ValueError: see `plan_for`.
    """
    check_type("target", target, Target, "use target('local'), of kd_local.memory")
    known = CompilationRecords() if records is None else records
    plan = plan_for(method, shape, batch, target.mesh, options)
    distinct = {call.signature: call for call in plan.calls}
    found = {signature: known.of(call, target) for signature, call in distinct.items()}
    return Footprint(
        pieces=piece_footprints(plan.calls, found),
        flops=2 * plan.multiply_adds,
        executables=plan.executables,
        compile_seconds=sum(compilation.compile_seconds for compilation in found.values()),
    )


def call_footprint(
    plan: StepPlan, lowered: Any, target: Target, *, records: CompilationRecords | None = None
) -> Footprint:
    """The memory and the work of a call of several steps; `flops` are those of one step.

    Args:
        plan: one step, of the form `joined`.
        lowered: the call, see `kd_local.parallel.lower_many`.
        target: the devices to compile for.
        records: known compilations; new ones are added.
    """
    known = CompilationRecords() if records is None else records
    (call,) = plan.calls
    found = known.of_lowered(f"{call.piece.name}, several steps", lowered, target)
    piece = PieceFootprint(call.piece.name, found, _state(plan.calls), _carried(call), found.step_bytes)
    return Footprint((piece,), 2 * plan.multiply_adds, executables=1, compile_seconds=found.compile_seconds)


def compiled_peak(step: CompiledStep | ManySteps) -> int:
    """The peak memory of a compiled step in bytes of one device: the largest peak of the groups of devices.

    That of several steps in one call includes the resident arrays.
    """
    if isinstance(step, ManySteps):
        return CompilationRecord.of_executable(step.executable).step_bytes
    plan = step.plan
    found = {
        call.signature: CompilationRecord.of_executable(executable)
        for call, executable in zip(plan.calls, step.executables, strict=True)
    }
    of_groups: list[list[Call]] = [[] for _ in plan.groups]
    for call, group in zip(plan.calls, plan.placement, strict=True):
        of_groups[group].append(call)
    return max(piece.peak for calls in of_groups for piece in piece_footprints(calls, found))


def floor_bytes(
    method: Method,
    shape: tuple[int, int, int],
    batch: int,
    target: Target,
    own: Mapping[str, int],
    *,
    options: StepOptions = StepOptions(),
) -> int:
    """A lower bound, in bytes of one device, for any form of a method's step that does not recompute convolutions.

    Each program needs the state of all programs, the activations of the smallest block that it trains, the tensors that
    it reads or writes, and the tensors kept for later programs. The bound is the largest of these sums. Nothing is
    compiled.

    Args:
        method: the method.
        shape: height, width and channels of the images (float32).
        batch: images of a step, over all devices of the target.
        target: the devices to compile for.
        own: bytes on one device of the activations of each program's smallest block, by the program's name, see
            `own_activations`; without programs that train no block.
        options: how the state is divided over the devices; the form is ignored.

    Raises:
        ValueError: see `plan_for`.
    """
    calls = plan_for(method, shape, batch, target.mesh, replace(options, form=SEPARATE, steps_per_call=1)).calls
    state = _state(calls)
    return max(state + _carried(call) + own.get(call.piece.name, 0) for call in calls)


def plan_for(
    method: Method, shape: tuple[int, int, int], batch: int, mesh: Mesh, options: StepOptions = StepOptions()
) -> StepPlan:
    """The plan of a method's step for `batch` images of `shape` (height, width, channels; float32).

    Raises:
        ValueError: there is no image, or the method reads a cache; see also `kd_local.parallel.plan_step`.
    """
    _BATCH.check("batch", batch)
    check_image_shape(shape)
    images, labels = jax.ShapeDtypeStruct((batch, *shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    if missing := [name for name in extra_names(method.programs()) if name not in offered_tensors(images)]:
        raise ValueError(f"the step reads {', '.join(missing)} from a cache: measure its memory without a cache")
    return plan_step(method, images, labels, mesh=mesh, options=options)


def piece_footprints(calls: Sequence[Call], found: dict[Hashable, CompilationRecord]) -> tuple[PieceFootprint, ...]:
    """The memory of one device, in bytes, while each of these calls runs.

    Args:
        calls: calls of pieces that run on the same devices. The state is that of their programs.
        found: compilation records by the calls' signatures.
    """
    state = _state(calls)
    pieces = []
    for call in calls:
        compilation = found[call.signature]
        kept = {name: tensor for name, tensor in call.live.items() if name not in call.piece.reads}
        others = state - _own(call) - tree_bytes(call.arguments[1])
        peak = compilation.step_bytes + others + _tensor_bytes(kept, call.devices)
        pieces.append(PieceFootprint(call.piece.name, compilation, state, _carried(call), peak))
    return tuple(pieces)


def _state(calls: Sequence[Call]) -> int:
    owned = {program.name for call in calls for program in call.piece.programs}
    read_only = {
        path: part
        for call in calls
        for path, part in zip(call.piece.frozen, call.arguments[1], strict=True)
        if owner(path) not in owned
    }
    return sum(map(_own, calls)) + tree_bytes(read_only)


def _own(call: Call) -> int:
    """Bytes on one device of the parts of the state that a piece owns."""
    leaves = zip(jax.tree.leaves(call.arguments[0]), jax.tree.leaves(call.own), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves)


def _carried(call: Call) -> int:
    return _tensor_bytes((call.live, call.shapes[1]), call.devices)


def _tensor_bytes(tensors: Any, devices: int) -> int:
    """Bytes of tensors on one device. The batch is divided over `devices`; scalars are copied."""
    return sum(tree_bytes(leaf) // (devices if leaf.shape else 1) for leaf in jax.tree.leaves(tensors))
