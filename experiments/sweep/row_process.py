"""Runs a row of a sweep in its own process, so that a crash or an out-of-memory kill ends only the row.

Rows that run at once share the machine: each has some of the CPU cores and a part of the GPU's memory. They cannot
share a TPU, which has one process.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from experiments.ending import Ending

_ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")


_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_MEMORY_SHARED = 0.9


@dataclass(frozen=True)
class Share:
    """What one of several rows that run at once has of the machine.

    Attributes:
        cores: the numbers of its CPU cores; all if there are fewer than rows.
        environment: the environment of its process: a GPU's memory is reserved in equal parts, unless the environment
            says otherwise.
    """

    cores: frozenset[int]
    environment: Mapping[str, str]


def shares(jobs: int) -> list[Share]:
    """The shares of `jobs` rows that run at once, two or more."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    environment = {_MEMORY: f"{_MEMORY_SHARED / jobs:.3f}", **os.environ}
    each = [cores[job::jobs] for job in range(jobs)] if len(cores) >= jobs else [cores] * jobs
    return [Share(frozenset(own), environment) for own in each]


def execute(
    command: Sequence[str],
    *,
    ending: Ending,
    descriptor: int,
    started: Callable[[int], None],
    ended: Callable[[int], None],
    share: Share | None = None,
) -> str | None:
    """Runs a command and shows its output. Returns its last error line if it fails, otherwise None.

    Args:
        command: program and arguments.
        ending: of this process; each of its signals reaches the row as SIGTERM, so that the row saves and stops.
        descriptor: descriptor of a file that the process inherits.
        started, ended: called with the process's number.
        share: what the process has of the machine, if others run beside it. Only its errors are shown then.
    """
    with (
        subprocess.Popen(
            command,
            stdout=None if share is None else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=[descriptor],
            env=None if share is None else share.environment,
        ) as process,
        ending.child(process),
    ):
        started(process.pid)
        if share is not None and share.cores:
            with suppress(OSError):  # it has ended
                os.sched_setaffinity(process.pid, share.cores)
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
        ended(process.pid)
    if status == 0:
        return None
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", perhaps because memory ran out" if -status == signal.SIGKILL else "")
    return (error or last or f"exit status {status}").removeprefix("error: ")
