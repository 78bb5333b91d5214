"""What the time of a traced round was spent on, from the trace that `jax.profiler` writes."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from experiments.speed.operations import kind_of_event, operation_kinds

IDLE = "no operation"


@dataclass(frozen=True)
class Event:
    """An operation, or a kernel of one, in a trace.

    Attributes:
        name: its name in the trace.
        operation: the operation's name in the HLO code; may be empty.
        program: what identifies its executable within the trace.
        start, end: nanoseconds.
    """

    name: str
    operation: str
    program: tuple[str, Any]
    start: float
    end: float


def traced(folder: Path) -> AbstractContextManager[None]:
    """Writes a trace of operations to a folder, without calls of Python functions, which would slow the host."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return jax.profiler.trace(str(folder), profiler_options=options)


def shares(folder: Path, seconds: float, executables: Sequence[str]) -> dict[str, float]:
    """Shares of a round's time by kind of operation, the largest first; they sum to 1.

    `IDLE` is the share in which the device ran no operation: it waited for the host, or the trace has no record of it.
    The time of operations that ran at once is divided in proportion to their durations.

    Args:
        folder: the folder of the trace.
        seconds: duration of the round.
        executables: HLO texts of the executables of the step.

    Raises:
        ValueError: the trace cannot be read, or has no operation of a device.
    """
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ValueError(f"there is no trace in {folder}")
    return shares_of(ProfileData.from_file(str(files[-1])), seconds, executables)


def shares_of(trace: ProfileData, seconds: float, executables: Sequence[str]) -> dict[str, float]:
    """The same of a trace that was read."""
    events = list(device_events(trace))
    known = _kinds_by_program(events, [operation_kinds(text) for text in executables])
    spent: dict[str, float] = {}
    spans = []
    for event in events:
        kind = kind_of_event(event.name, event.operation, known[event.program])
        if kind:
            spent[kind] = spent.get(kind, 0.0) + event.end - event.start
            spans.append((event.start, event.end))
    total = sum(spent.values())
    if not total:
        raise ValueError("the trace has no operation of the device")
    busy = min(1.0, _union(spans) / (seconds * 1e9))
    largest_first = sorted(spent, key=spent.__getitem__, reverse=True)
    return {**{kind: busy * spent[kind] / total for kind in largest_first}, IDLE: 1.0 - busy}


def note(found: Mapping[str, float]) -> str:
    """The sentence of a row: the largest shares, and the idle share."""
    listed = ", ".join(f"{share:.0%} {kind}" for kind, share in found.items() if kind != IDLE and share >= 0.01)
    return f"{listed}; {found.get(IDLE, 0.0):.0%} without an operation on the device"


def device_events(trace: ProfileData) -> Iterable[Event]:
    """The operations of the first device: of a GPU or TPU its kernels, of a CPU the operations of XLA's threads."""
    planes = {plane.name: plane for plane in trace.planes}
    accelerators = sorted(name for name in planes if name.startswith(("/device:GPU:", "/device:TPU:")))
    if accelerators:
        lines = list(planes[accelerators[0]].lines)
        chosen = [line for line in lines if line.name.startswith("Stream")]
        for line in chosen or [line for line in lines if line.name == "XLA Ops"]:
            for event in line.events:
                found = dict(event.stats)
                yield _event(event, found, event.start_ns + event.duration_ns)
        return
    if "/host:CPU" in planes:
        yield from _cpu_events(planes["/host:CPU"])


def _cpu_events(plane: Any) -> Iterable[Event]:
    """A CPU's convolution ends on another thread, in an event `end: NAME` with the number of the first one."""
    events = [(event, dict(event.stats)) for line in plane.lines for event in line.events]
    ends = {found["_c"]: event.start_ns for event, found in events if event.name.startswith("end: ") and "_c" in found}
    for event, found in events:
        if "hlo_op" in found:
            end = event.start_ns + event.duration_ns
            yield _event(event, found, max(end, ends.get(found.get("_p"), end)))


def _event(event: Any, found: Mapping[str, Any], end: float) -> Event:
    # An operation of a TPU has the whole instruction as its name.
    name = event.name.split(" = ")[0].removeprefix("%")
    program = (str(found.get("hlo_module", "")), found.get("program_id"))
    return Event(name, str(found.get("hlo_op", "")), program, event.start_ns, end)


def _kinds_by_program(
    events: Sequence[Event], executables: Sequence[Mapping[str, str]]
) -> dict[tuple[str, Any], Mapping[str, str]]:
    """The kinds of the executable that has most operations of the program; executables have no number of their own."""
    names: dict[tuple[str, Any], set[str]] = {}
    for event in events:
        names.setdefault(event.program, set()).add(event.operation or event.name)
    return {
        program: max(executables, key=lambda kinds: len(found & kinds.keys()), default={})
        for program, found in names.items()
    }


def _union(spans: Sequence[tuple[float, float]]) -> float:
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
