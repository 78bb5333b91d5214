"""A row of a sweep as a process of its own: a crash, or a kill for want of memory, ends that row and not the sweep."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from kd_local.training.interruption import Interruption

_ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")


class Stop(Interruption):
    """As `Interruption`, but every signal is passed on to the running process as the wish to save and stop.

    It is passed on as SIGTERM: Ctrl-C at a terminal has reached that process already, and again it would end it
    without saving.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[str] | None = None

    def watch(self, process: subprocess.Popen[str] | None) -> None:
        """The process that runs from now on, or none."""
        self._process = process
        if self.received is not None:
            self._pass_on()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        self._pass_on()

    def _pass_on(self) -> None:
        if self._process is not None:
            self._process.terminate()


def execute(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    stop: Stop,
    descriptor: int,
    started: Callable[[int | None], None],
) -> str | None:
    """Run a command to its end, what it prints shown; its last error line where it fails.

    Args:
        descriptor: of a file to be inherited.
        started: is told the process's number, and None once it has ended.
    """
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=[descriptor]
    ) as process:
        started(process.pid)
        stop.watch(process)
        error = last = ""
        assert process.stderr is not None
        for line in process.stderr:
            # One that is stopped while it starts has nothing to say but where.
            if stop.received is None or line.startswith(("error: ", "warning: ")):
                sys.stderr.write(line)
            if line.strip():
                last = line.strip()
            if _ERROR.match(line):
                error = line.strip()
        status = process.wait()
        stop.watch(None)
        started(None)
    if status == 0:
        return None
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", perhaps for want of memory" if -status == signal.SIGKILL else "")
    return (error or last or f"exit status {status}").removeprefix("error: ")
