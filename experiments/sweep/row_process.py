"""Runs a row of a sweep in its own process, so that a crash or an out-of-memory kill ends only the row."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

from experiments.ending import Ending

_ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")


def execute(
    command: Sequence[str],
    *,
    ending: Ending,
    descriptor: int,
    started: Callable[[int | None], None],
) -> str | None:
    """Runs a command and shows its output. Returns its last error line if it fails, otherwise None.

    Args:
        command: program and arguments.
        ending: of this process; each of its signals reaches the row as SIGTERM, so that the row saves and stops.
        descriptor: descriptor of a file that the process inherits.
        started: called with the process's number, and with None when the process has ended.
    """
    with (
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=[descriptor]
        ) as process,
        ending.child(process),
    ):
        started(process.pid)
        error = last = ""
        assert process.stderr is not None
        for line in process.stderr:
            # The sweep has its own message for a signal.
            if ending.received is None or (line.startswith(("error: ", "warning: ")) and " interrupted " not in line):
                sys.stderr.write(line)
            if line.strip():
                last = line.strip()
            if _ERROR.match(line):
                error = line.strip()
        status = process.wait()
        started(None)
    if status == 0:
        return None
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", perhaps because memory ran out" if -status == signal.SIGKILL else "")
    return (error or last or f"exit status {status}").removeprefix("error: ")
