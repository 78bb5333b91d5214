"""Records which group of devices worked on which batch, and when, as seen from the host.

For each group a thread waits for the results of the pieces that were dispatched to it, one after another. A piece
starts when its group is free and the tensors that it reads are ready. The work of the devices within a piece is visible
only in a profiler.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import jax

from kd_local.parallel.plan import StepPlan
from kd_local.parallel.step import Watch


@dataclass(frozen=True)
class Span:
    """A piece's work on one batch.

    Attributes:
        group: index of the group of devices, from 0.
        piece: the piece's name.
        batch: index of the batch, from 0.
        start, end: seconds since the recording began.
    """

    group: int
    piece: str
    batch: int
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """The work of several steps.

    Attributes:
        spans: the pieces' spans, sorted by batch, then by start.
        seconds: time until all results were ready.
    """

    spans: tuple[Span, ...]
    seconds: float

    def busy(self) -> dict[int, float]:
        """The share of the time in which each group worked."""
        busy: dict[int, float] = {}
        for span in self.spans:
            busy[span.group] = busy.get(span.group, 0.0) + span.end - span.start
        return {group: seconds / self.seconds for group, seconds in sorted(busy.items())}

    def seconds_of_pieces(self) -> dict[str, float]:
        """The median time that each piece took, by its name."""
        seconds: dict[str, list[float]] = {}
        for span in self.spans:
            seconds.setdefault(span.piece, []).append(span.end - span.start)
        return {piece: statistics.median(of_piece) for piece, of_piece in seconds.items()}


def recorded(plan: StepPlan, run: Callable[[Watch], object]) -> Timeline:
    """The timeline of some steps of a plan. `run(watch)` takes the steps and passes `watch` to each of them."""
    seen: list[tuple[int, str, int, float, Future[float]]] = []
    executors = [ThreadPoolExecutor(1) for _ in plan.groups]
    began = time.perf_counter()

    def ready(metrics: Any) -> float:
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    def watch(group: int, piece: str, dispatched: float, metrics: Sequence[Mapping[str, Any]]) -> None:
        future = executors[group].submit(ready, metrics)
        seen.append((group, piece, len(seen) // len(plan.calls), dispatched - began, future))

    try:
        run(watch)
    finally:
        for executor in executors:
            executor.shutdown()
    observed = [Span(group, piece, batch, start, end.result()) for group, piece, batch, start, end in seen]
    seconds = time.perf_counter() - began
    return Timeline(tuple(sorted(working(observed), key=attrgetter("batch", "start"))), seconds)


def working(observed: Sequence[Span]) -> list[Span]:
    """The spans in which the pieces worked, from the times of dispatch and the times at which ends were noticed.

    A thread may notice an end late. But a piece ends before every later piece of its batch and of its group. Therefore
    its end is the earliest time at which any of these ends was noticed. No piece takes a negative time.

    Args:
        observed: spans in the order of dispatch: `start` is the time before the dispatch, `end` the time at which the
            end was noticed.
    """
    ends: dict[tuple[str, int], float] = {}
    spans = []
    for span in reversed(observed):
        end = min(span.end, *(ends.get(key, span.end) for key in _order(span)))
        ends |= dict.fromkeys(_order(span), end)
        spans.append(replace(span, end=end))
    free: dict[tuple[str, int], float] = {}
    worked = []
    for span in reversed(spans):
        start = min(max(span.start, *(free.get(key, 0.0) for key in _order(span))), span.end)
        free |= dict.fromkeys(_order(span), span.end)
        worked.append(replace(span, start=start))
    return worked


def _order(span: Span) -> tuple[tuple[str, int], ...]:
    """The two sequences that a piece belongs to, its batch and its group: their pieces run one after another."""
    return ("batch", span.batch), ("group", span.group)
