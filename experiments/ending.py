"""The end of a program by a signal: within seconds, with one line, and with the conventional status, 128 + its number.

A thread reads the signals, so that a program also ends while its main thread imports, compiles or measures. This module
imports only what Python starts with: a program calls `ENDING.watch()` before the imports that take seconds.

- Where no work would be lost, the program ends at once.
- Otherwise the main thread finds the signal in `received`, saves, and ends.
- A second signal ends the program at once. Checkpoints and tables stay as they were saved last.

The state is global because the handlers of signals are: one for the whole process.
"""

import atexit
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_SECONDS = 0.5
"""Signals that follow the first one within this time are the same request: `timeout`, terminals and cluster managers
send one to a process and to its group."""
GRACE_SECONDS = 3.0
"""The time that the main thread has to end once nothing would be lost."""
CLEANING_SECONDS = 2.0
"""The longest time for cleaning up at the end."""


class Ending:
    """The end of this process.

    Attributes:
        received: the number of the first signal; None if none has come.
        loses: whether an end now would lose work; called in the thread that reads the signals.
        left: the end of the message: what is kept, and how to resume.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.loses: Callable[[], bool] = lambda: False
        self.left = ""
        self._watched = self._said = False
        self._children: list[subprocess.Popen[str]] = []
        self._cleaning: list[Callable[[], object]] = []

    def watch(self) -> None:
        """Handle signals from now on; called in the main thread."""
        pipe, end = os.pipe()
        os.set_blocking(end, False)
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        self._watched = True
        self.arm()
        # A forked process has the handlers and the pipe, but not the thread.
        os.register_at_fork(after_in_child=_unwatch)
        threading.Thread(target=self._watch, args=(pipe,), name="signals", daemon=True).start()

    def arm(self) -> None:
        """Handle the signals again: libraries of accelerators and of clusters install handlers of their own."""
        if self._watched:
            for number in SIGNALS:
                # nohup ignores it; shells ignore SIGINT in background programs, which is not kept.
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, _wake)

    def at_end(self, clean: Callable[[], object]) -> None:
        """Call a function at the end of the process, whether by a signal or not; the latest one first."""
        if not self._cleaning:
            atexit.register(self.clean)
        self._cleaning.append(clean)

    def clean(self) -> None:
        """Call the functions of `at_end` now, those that were not called yet."""
        while self._cleaning:
            with suppress(Exception):
                self._cleaning.pop()()

    @contextmanager
    def child(self, process: "subprocess.Popen[str]") -> Iterator[None]:
        """A process that gets SIGTERM for each signal and is killed if it outlives this process."""
        self._children.append(process)
        try:
            if self.received is not None:
                process.terminate()
            yield
        finally:
            self._children.remove(process)

    def end(self, message: str, status: int) -> NoReturn:
        """End the program from the main thread with a message on standard error, its last."""
        self._said = True
        print(f"error: {message}", file=sys.stderr)
        sys.exit(status)

    def _watch(self, pipe: int) -> None:
        came = safe_since = 0.0
        while True:
            if select.select([pipe], [], [], None if self.received is None else 0.1)[0]:
                number = os.read(pipe, 1)[0]
                if number not in SIGNALS or (self.received is not None and time.monotonic() - came < AGAIN_SECONDS):
                    continue
                for process in list(self._children):
                    process.terminate()
                if self.received is not None or not self.loses():
                    self._end(number)
                self.received = number
                came = safe_since = time.monotonic()
            if self.loses():
                safe_since = time.monotonic()
            elif time.monotonic() - safe_since > GRACE_SECONDS:
                assert self.received is not None
                self._end(self.received)

    def _end(self, number: int) -> NoReturn:
        # In a thread: the main thread may hold what this waits for.
        cleaning = threading.Thread(target=self._stop_and_clean, daemon=True)
        cleaning.start()
        cleaning.join(CLEANING_SECONDS)
        with suppress(OSError):  # nobody reads
            if os.isatty(1):
                os.write(1, b"\x1b[?25h\n")  # a progress bar hides the cursor
            if not self._said:
                text = "; ".join(filter(None, [f"error: interrupted by {signal.Signals(number).name}", self.left]))
                os.write(2, f"{text}\n".encode())
        os._exit(128 + number)

    def _stop_and_clean(self) -> None:
        for process in list(self._children):
            try:
                process.wait(CLEANING_SECONDS / 2)
            except subprocess.TimeoutExpired:
                process.kill()
        self.clean()
        with suppress(Exception):
            sys.stdout.flush()


def _wake(number: int, frame: Any) -> None:
    """Python has written the number to the pipe."""


def _unwatch() -> None:
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        if signal.getsignal(number) is _wake:
            signal.signal(number, signal.SIG_DFL)


ENDING = Ending()
