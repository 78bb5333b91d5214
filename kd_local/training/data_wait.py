"""How long the devices have waited for data: what no faster device, and no better network, would gain."""

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

import jax

Batch = TypeVar("Batch")


class DataWait:
    """The time in which the host waited for a batch and the devices had nothing left to do.

    Whoever waits cannot see when the devices end; a thread does.

    Attributes:
        seconds: so far; may be set to 0 at any time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._queue: SimpleQueue[tuple[Any, Future[float]] | None] = SimpleQueue()
        self._last: Future[float] | None = None
        # A daemon: devices that wait for a lost process never end, and must not keep the program from ending.
        threading.Thread(target=self._watch, daemon=True).start()

    def batches(self, source: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, each of them timed."""
        iterator = iter(source)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            arrived = time.monotonic()
            if self._last is None or self._last.done():
                idle_since = asked if self._last is None else max(asked, self._last.result())
                self.seconds += max(0.0, arrived - idle_since)
            yield batch

    def dispatched(self, results: Any) -> None:
        """What the devices were last given to do, as a pytree of arrays that are ready once it is done."""
        self._last = Future()
        self._queue.put((results, self._last))

    def close(self) -> None:
        """End the thread, once it has seen what it waits for."""
        self._queue.put(None)

    def _watch(self) -> None:
        while (given := self._queue.get()) is not None:
            results, done = given
            with suppress(Exception):  # of which whoever reads the results is told
                jax.block_until_ready(results)
            del results, given
            done.set_result(time.monotonic())
