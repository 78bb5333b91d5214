"""Which group of devices worked on which batch, and when, as seen from the host.

A thread for each group waits for the results of what was dispatched to it, one after another. A piece has begun when
its group was free and what it reads was ready; what a piece's own devices did in between is a profiler's to tell.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import jax

from kd_local.parallel.step import Step


@dataclass(frozen=True)
class Span:
    """A piece at work.

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


class Timeline:
    """What `recording` has seen.

    Attributes:
        spans: complete once the recording has ended, in the order of dispatch.
        seconds: how long it took until everything was ready.
    """

    def __init__(self) -> None:
        self.spans: tuple[Span, ...] = ()
        self.seconds = 0.0

    def busy(self) -> dict[int, float]:
        """Of each group, the share of the time in which it was at work."""
        busy: dict[int, float] = {}
        for span in self.spans:
            busy[span.group] = busy.get(span.group, 0.0) + span.end - span.start
        return {group: seconds / self.seconds for group, seconds in sorted(busy.items())}

    def seconds_of_pieces(self) -> dict[str, float]:
        """Of each piece, the shortest time that it took."""
        shortest: dict[str, float] = {}
        for span in self.spans:
            took = span.end - span.start
            shortest[span.piece] = min(took, shortest.get(span.piece, took))
        return shortest


@contextmanager
def recording(step: Step) -> Iterator[Timeline]:
    """Watch the calls of a step."""
    timeline = Timeline()
    names = [piece.name for piece in step.pieces]
    seen: list[tuple[int, str, int, float, Future[float]]] = []
    executors = [ThreadPoolExecutor(1) for _ in step.groups]
    began = time.perf_counter()

    def ready(metrics: Any) -> float:
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    def watch(group: int, piece: str, metrics: Sequence[Mapping[str, Any]]) -> None:
        future = executors[group].submit(ready, metrics)
        seen.append((group, piece, len(seen) // len(names), time.perf_counter() - began, future))

    step.watch = watch
    try:
        yield timeline
    finally:
        step.watch = None
        ends = [future.result() for *_, future in seen]
        for executor in executors:
            executor.shutdown()
    timeline.seconds = time.perf_counter() - began
    free = dict.fromkeys(range(len(step.groups)), 0.0)
    spans = []
    for _, of_batch in groupby(zip(seen, ends, strict=True), key=lambda pair: pair[0][2]):
        arrived = 0.0
        for (group, piece, batch, dispatched, _), end in of_batch:
            span = Span(group, piece, batch, max(free[group], arrived, dispatched), end)
            free[group] = arrived = end
            spans.append(span)
    timeline.spans = tuple(sorted(spans, key=attrgetter("batch", "start")))
