"""The time in which devices wait for data."""

import threading
import time
from collections import deque
from contextlib import closing

import numpy as np
import pytest

from kd_local.training.data_wait import DataWait


class Work:
    """Results that are ready at a time of the fake clock."""

    def __init__(self, ends: float) -> None:
        self.ends, self.ready = ends, threading.Event()

    def block_until_ready(self) -> None:
        assert self.ready.wait(60)


class Devices:
    """A fake clock, and devices that do their work in order."""

    def __init__(self) -> None:
        self.now = self.free = 0.0
        self.queue = deque()

    def clock(self) -> float:
        return self.now

    def dispatch(self, wait: DataWait, seconds: float) -> None:
        self.free = max(self.now, self.free) + seconds
        work = Work(self.free)
        self.queue.append((work, wait.dispatched({"loss": work, "accuracy": np.zeros(())})))

    def advance(self, seconds: float) -> None:
        """Advances the clock, and completes the work that ends before the new time."""
        until = self.now + seconds
        while self.queue and self.queue[0][0].ends <= until:
            work, done = self.queue.popleft()
            self.now = work.ends
            work.ready.set()
            assert done.result(60) == work.ends
        self.now = until


def run(batches: int, *, data: float, step: float, other: float = 0.0) -> float:
    """Seconds of waiting, if a batch, the step on it and other work of the host take these seconds each."""
    devices = Devices()

    def source():
        for batch in range(batches):
            devices.advance(data)
            yield batch

    seen = []
    with closing(DataWait(devices.clock)) as wait:
        for batch in wait.batches(source()):
            seen.append(batch)
            devices.dispatch(wait, step)
            devices.advance(other)
    devices.advance(1000.0)
    assert seen == list(range(batches))
    return wait.seconds


def test_idle_devices_wait_for_as_long_as_the_data_take():
    assert run(4, data=0.1, step=0.0) == pytest.approx(0.4)


def test_busy_devices_wait_for_the_first_batch_only():
    assert run(4, data=0.02, step=0.2) == pytest.approx(0.02)


def test_devices_wait_from_the_end_of_their_work_to_the_next_batch():
    assert run(4, data=0.15, step=0.05) == pytest.approx(0.15 + 3 * 0.1)


def test_other_work_of_the_host_does_not_count_as_waiting():
    assert run(3, data=0.0, step=0.0, other=0.1) == 0
    # Work that ends while the host is busy counts from the request for the next batch.
    assert run(3, data=0.3, step=0.05, other=0.1) == pytest.approx(3 * 0.3)


class Lost:
    def block_until_ready(self) -> None:
        raise RuntimeError("the computation failed")


def test_failed_results_count_as_ready():
    with closing(DataWait()) as wait:
        for _ in wait.batches(range(3)):
            assert wait.dispatched(Lost()).result(60) <= time.monotonic()
