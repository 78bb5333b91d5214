"""Signals as a request that the loop carries out at the end of a step."""

import signal
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, runtime_checkable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run received a signal and has stopped; its state was saved if it has checkpoints.

    Attributes:
        signal: the signal's number; the conventional exit status is 128 more.
        step: the steps done.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name} after step {step}")
        self.signal = number
        self.step = step


@runtime_checkable
class StopRequest(Protocol):
    """A request to stop, as the loop sees it.

    Attributes:
        received: the number of the signal to stop by; None if there is none.
        loses: set by the loop: whether the end of the process now would lose steps. Any thread may call it.
    """

    received: int | None
    loses: Callable[[], bool]


class Interruption:
    """While entered, holds the first SIGTERM or Ctrl-C in `received`; a second Ctrl-C acts at once.

    Attributes:
        received, loses: see `StopRequest`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.loses: Callable[[], bool] = lambda: False

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, lambda number, _: self.receive(number)) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def receive(self, number: int) -> None:
        """Called with the number of each signal that arrives."""
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
