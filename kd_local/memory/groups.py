"""Memory and time of each group of devices, if the modules of a network are divided over groups.

Both are computed from the compiler's reports. Nothing is executed, so the devices may be absent.
"""

from dataclasses import dataclass, replace

from kd_local.contract import Method
from kd_local.memory.compilations import CompilationRecord, CompilationRecords
from kd_local.memory.footprint import piece_footprints, plan_for
from kd_local.memory.targets import Target
from kd_local.parallel import StepOptions, transfers_between_groups


@dataclass(frozen=True)
class GroupFootprint:
    """Memory and time of a group of devices. Bytes are those of one device of the group.

    Attributes:
        pieces: names of the pieces that run on the group.
        peak_bytes: peak while the group's largest piece runs, without batches that wait for the group.
        arriving_bytes: bytes of one waiting batch. The number of waiting batches is at most that of batches in flight.
        seconds: lower bound for the time of the group's pieces, one after another. A piece takes at least the time of
            its floating-point operations, and at least the time of its memory traffic; see `CompilationRecord` and
            `Target`. None if the speed of the target is not known.

    Reference:
        Williams et al., "Roofline" (CACM 2009).
    """

    pieces: tuple[str, ...]
    peak_bytes: int
    arriving_bytes: int
    seconds: float | None


def group_footprints(
    method: Method,
    shape: tuple[int, int, int],
    batch: int,
    target: Target,
    *,
    options: StepOptions = StepOptions(),
    records: CompilationRecords | None = None,
) -> tuple[GroupFootprint, ...]:
    """Memory and time of each group of a target's devices in a method's training step.

    Args:
        method: the method.
        shape: height, width and channels of the images (float32).
        batch: images of a step, over all devices of a group.
        target: the devices, with a mesh from `kd_local.parallel.device_mesh`.
        options: how the step is compiled, divided and placed.
        records: known compilations; new ones are added.

    Raises:
        ValueError: see `kd_local.memory.footprint.plan_for`.
    """
    known = CompilationRecords() if records is None else records
    plan = plan_for(method, shape, batch, target.mesh, options)
    found = {call.signature: known.of(call, replace(target, mesh=call.mesh)) for call in plan.calls}
    whole = sum(tensor.size * tensor.dtype.itemsize for tensor in plan.batch.values())
    arriving = (whole, *transfers_between_groups(plan.calls, plan.placement))
    groups = []
    for group in range(len(plan.groups)):
        own = [call for call, at in zip(plan.calls, plan.placement, strict=True) if at == group]
        pieces = piece_footprints(own, found)
        seconds = [roofline_seconds(found[call.signature], target) for call in own]
        groups.append(
            GroupFootprint(
                tuple(piece.name for piece in pieces),
                max(piece.peak for piece in pieces),
                arriving[group] // own[0].devices,
                None if None in seconds else sum(filter(None, seconds)),
            )
        )
    return tuple(groups)


def roofline_seconds(compilation: CompilationRecord, target: Target) -> float | None:
    """A lower bound for the time of an executable: that of its floating-point operations, and that of its memory
    traffic, whichever is longer. None if the counts, or the speed of the target, are not known.

    Reference:
        Williams et al., "Roofline" (CACM 2009).
    """
    of_flops = _ratio(compilation.flops, target.flops_per_second)
    of_memory = _ratio(compilation.moved_bytes, target.bytes_per_second)
    return None if of_flops is None or of_memory is None else max(of_flops, of_memory)


def _ratio(amount: float | None, per_second: float | None) -> float | None:
    return None if amount is None or per_second is None else amount / per_second
