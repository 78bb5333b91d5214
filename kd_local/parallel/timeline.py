"""Which group of devices worked on which batch, and when, as seen from the host.

A thread for each group waits for the results of the pieces that were dispatched to it, one after another. A piece
starts when its group is free and the tensors that it reads are ready. Only a profiler shows the work of its devices in
between.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import jax

from kd_local.parallel.plan import StepPlan
from kd_local.parallel.step import Watch


@dataclass(frozen=True)
class Span:
    """A piece's work on one batch.

    Attributes:
        group: of devices, from 0.
        piece: its name.
        batch: from 0.
        start, end: seconds since the recording began.
    """

    group: int
    piece: str
    batch: int
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What several steps did, and when.

    Attributes:
        spans: by batch, then by start.
        seconds: until all results were ready.
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
        """The shortest time that each piece took, by its name."""
        shortest: dict[str, float] = {}
        for span in self.spans:
            took = span.end - span.start
            shortest[span.piece] = min(took, shortest.get(span.piece, took))
        return shortest


def recorded(plan: StepPlan, run: Callable[[Watch], object]) -> Timeline:
    """The timeline of the steps of a plan that `run` takes, each called with the `watch` that `run` is given."""
    seen: list[tuple[int, str, int, float, Future[float]]] = []
    executors = [ThreadPoolExecutor(1) for _ in plan.groups]
    began = time.perf_counter()

    def ready(metrics: Any) -> float:
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    def watch(group: int, piece: str, metrics: Sequence[Mapping[str, Any]]) -> None:
        future = executors[group].submit(ready, metrics)
        seen.append((group, piece, len(seen) // len(plan.calls), time.perf_counter() - began, future))

    try:
        run(watch)
    finally:
        for executor in executors:
            executor.shutdown()
    ends = [future.result() for *_, future in seen]
    seconds = time.perf_counter() - began
    free = dict.fromkeys(range(len(plan.groups)), 0.0)
    spans = []
    for _, of_batch in groupby(zip(seen, ends, strict=True), key=lambda pair: pair[0][2]):
        arrived = 0.0
        for (group, piece, batch, dispatched, _), end in of_batch:
            span = Span(group, piece, batch, max(free[group], arrived, dispatched), end)
            free[group] = arrived = end
            spans.append(span)
    return Timeline(tuple(sorted(spans, key=attrgetter("batch", "start"))), seconds)
