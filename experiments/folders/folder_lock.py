"""A lock that lets one program at a time use a folder. If a sweep is killed, its running row still holds the lock."""

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

LOCK = ".lock"
_WIDTH = 512


class InUseError(Exception):
    """Another program holds the lock. The message names the program and a way out."""


class Interrupted(Exception):
    """`stopped` became true while the program waited for the lock."""


class FolderLock:
    """A context manager that holds the lock. A process that inherits `descriptor` also holds it, until it ends.

    If a killed sweep left a row running, entering asks the row to save and stop, and waits for its end.

    Args:
        folder: an existing folder.
        report: called with a message before the program waits for a row.
        stopped: returns True to end the waiting.

    Raises:
        InUseError: on entering, if another program holds the lock.
        Interrupted: on entering, if `stopped` became true.
    """

    def __init__(self, folder: Path, *, report: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        self._folder = folder
        self._report = report
        self._stopped = stopped

    def __enter__(self) -> "FolderLock":
        self._file = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._acquire()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    @property
    def descriptor(self) -> int:
        return self._file

    def name_row(self, process: int | None) -> None:
        """Records the process of the running row, which may outlive this process; None if no row runs."""
        holder: dict[str, Any] = {"host": socket.gethostname()}
        for name, number in (("sweep", os.getpid()), ("row", process)):
            holder |= {name: number, f"{name}_started": None if number is None else _start_time(number)}
        # One write of constant size, so that a reader never sees parts of two texts.
        os.pwrite(self._file, json.dumps(holder).ljust(_WIDTH - 1).encode() + b"\n", 0)

    def _acquire(self) -> None:
        asked: set[int | None] = set()
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._ask_to_stop(asked)
            else:
                break
            if self._stopped():
                raise Interrupted
            time.sleep(0.1)
        self.name_row(None)

    def _ask_to_stop(self, asked: set[int | None]) -> None:
        """Asks the recorded row to stop, unless it is in `asked`.

        Until the present holder has written its record, the file has the record of an earlier holder. Therefore every
        call reads the file again, and a record contains the start time of a process as well as its number.
        """
        holder = self._holder()
        if holder["host"] != socket.gethostname() or _runs(holder, "sweep"):
            who = f"process {holder['sweep']} on {holder['host']}" if holder["host"] else "by a program just started"
            raise InUseError(
                f"workdir {str(self._folder)!r} is in use already, {who}: wait for its end, or use another --workdir"
            )
        row = holder["row"] if _runs(holder, "row") else None
        if row in asked:
            return
        asked.add(row)
        if row is None:
            self._report(f"a row of a killed sweep still runs in {self._folder}: waiting for its end")
            return
        self._report(f"the row of a killed sweep still runs (process {row}): asked to save and stop")
        with suppress(ProcessLookupError):  # it may have ended since
            os.kill(row, signal.SIGTERM)

    def _holder(self) -> dict[str, Any]:
        try:
            holder: dict[str, Any] = json.loads(os.pread(self._file, _WIDTH, 0))
        except json.JSONDecodeError:
            return {"host": None, "sweep": None}  # nothing is recorded yet
        return holder


def _runs(holder: dict[str, Any], name: str) -> bool:
    """True if a recorded process runs. A later process with the same number does not count."""
    process = holder[name]
    return process is not None and _alive(process) and holder.get(f"{name}_started") == _start_time(process)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _start_time(process: int) -> int | None:
    """The start time of a process, in clock ticks since the host's start; None if there is no /proc."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # field 22; field 2, the name, may have spaces and brackets
