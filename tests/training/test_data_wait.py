"""The time in which devices wait for data."""

import time
from contextlib import closing

import numpy as np
import pytest

from kd_local.training.data_wait import DataWait


class Busy:
    """What is ready only after a while, as a device's results are."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    def block_until_ready(self) -> None:
        time.sleep(max(0.0, self.until - time.monotonic()))


class Lost:
    def block_until_ready(self) -> None:
        raise RuntimeError("the computation failed")


def slow(batches: int, seconds: float):
    for batch in range(batches):
        time.sleep(seconds)
        yield batch


def run(batches: int, of_data: float, of_step: float) -> float:
    with closing(DataWait()) as wait:
        seen = []
        for batch in wait.batches(slow(batches, of_data)):
            seen.append(batch)
            wait.dispatched({"loss": Busy(of_step), "accuracy": np.zeros(())})
        assert seen == list(range(batches))
        return wait.seconds


def test_devices_that_have_nothing_to_do_wait_for_as_long_as_the_data_take():
    assert run(4, 0.1, 0.0) == pytest.approx(0.4, abs=0.08)


def test_devices_that_are_busy_do_not_wait_but_for_the_first_batch():
    assert run(4, 0.02, 0.2) == pytest.approx(0.02, abs=0.015)


def test_the_time_is_that_between_their_end_and_the_batch():
    assert run(4, 0.15, 0.05) == pytest.approx(0.15 + 3 * 0.1, abs=0.1)


def test_what_else_the_host_does_meanwhile_is_no_wait_for_data():
    with closing(DataWait()) as wait:
        for _ in wait.batches(range(3)):
            wait.dispatched(np.zeros(()))
            time.sleep(0.1)
        assert wait.seconds < 0.05


def test_results_that_never_come_do_not_hinder():
    with closing(DataWait()) as wait:
        for _ in wait.batches(range(3)):
            wait.dispatched(Lost())
    assert wait.seconds < 0.1
