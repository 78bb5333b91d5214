"""Runs a row of a sweep in its own process, so that a crash or an out-of-memory kill ends only the row."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from kd_local.training.interruption import Interruption

_ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")


class Stop(Interruption):
    """Forwards every signal to the running process as SIGTERM, so that it saves and stops.

    A Ctrl-C at a terminal has already reached this process, and a second SIGINT would end it without saving.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[str] | None = None

    def watch(self, process: subprocess.Popen[str] | None) -> None:
        """Sets the process that runs now, or None."""
        self._process = process
        if self.received is not None:
            self._terminate()

    def receive(self, number: int) -> None:
        self.received = self.received or number
        self._terminate()

    def _terminate(self) -> None:
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
    """Runs a command and shows its output. Returns its last error line if it fails, otherwise None.

    Args:
        command: program and arguments.
        environment: environment variables of the process.
        stop: forwards signals to the process.
        descriptor: descriptor of a file that the process inherits.
        started: called with the process's number, and with None when the process has ended.
    """
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=[descriptor]
    ) as process:
        started(process.pid)
        stop.watch(process)
        error = last = ""
        assert process.stderr is not None
        for line in process.stderr:
            # The traceback of a process that is stopped while it starts is not shown.
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
        return f"killed by {name}" + (", perhaps because memory ran out" if -status == signal.SIGKILL else "")
    return (error or last or f"exit status {status}").removeprefix("error: ")
