"""Measures the time in which the devices wait for data. Faster devices or another network would not shorten it."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

import jax

Batch = TypeVar("Batch")


class DataWait:
    """The time in which the host waited for a batch and the devices were idle.

    A thread waits for the devices, because the caller of `batches` waits for the data.

    Attributes:
        seconds: the sum so far. It may be set to 0 at any time.

    Args:
        clock: returns the time in seconds; called from both threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._queue: SimpleQueue[tuple[Any, Future[float]] | None] = SimpleQueue()
        self._last: Future[float] | None = None
        # A daemon thread, because devices that wait for a lost process never finish, and the program must still end.
        threading.Thread(target=self._watch, daemon=True).start()

    def batches(self, source: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches of `source`, and times each."""
        iterator = iter(source)
        while True:
            asked = self._clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            arrived = self._clock()
            if self._last is None or self._last.done():
                idle_since = asked if self._last is None else max(asked, self._last.result())
                self.seconds += max(0.0, arrived - idle_since)
            yield batch

    def dispatched(self, results: Any) -> Future[float]:
        """Registers the work that was dispatched last.

        Args:
            results: a pytree of arrays that are ready once the work is done.

        Returns:
            The time at which the work is done.
        """
        self._last = Future()
        self._queue.put((results, self._last))
        return self._last

    def close(self) -> None:
        """Ends the thread after the work that it waits for."""
        self._queue.put(None)

    def _watch(self) -> None:
        while (given := self._queue.get()) is not None:
            results, done = given
            with suppress(Exception):  # the reader of the results gets it
                jax.block_until_ready(results)
            del results, given
            done.set_result(self._clock())
