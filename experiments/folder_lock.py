"""One sweep at a time in a folder, and no row of it twice: a lock that a killed sweep's running row still holds."""

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

LOCK = ".lock"


class FolderLock:
    """Held until `release`, and by every process that inherits `descriptor` until its end.

    Args:
        folder: which is there.
        report: is told of a row that a killed sweep left running, which is asked to save and stop.
        stopped: whether to give up while waiting for that row.

    Raises:
        ValueError: another sweep is at work there.
    """

    def __init__(self, folder: Path, *, report: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        self._file = (folder / LOCK).open("a+")
        waiting = False
        while not self._acquired():
            if not waiting:
                try:
                    self._ask_to_stop(folder, report)
                except ValueError:
                    self.release()
                    raise
                waiting = True
            if stopped():
                return
            time.sleep(0.1)
        self.name_row(None)

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def name_row(self, process: int | None) -> None:
        """Leave word of the process of the running row, which may outlive this one."""
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "sweep": os.getpid(), "row": process}) + "\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()

    def _acquired(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _ask_to_stop(self, folder: Path, report: Callable[[str], None]) -> None:
        self._file.seek(0)
        try:
            holder = json.loads(self._file.read())
        except json.JSONDecodeError:
            holder = {"host": None, "sweep": None, "row": None}
        if holder["host"] != socket.gethostname() or _alive(holder["sweep"]):
            raise ValueError(
                f"workdir {str(folder)!r} is in use already, process {holder['sweep']} on {holder['host']}: wait "
                "for its end, or use another --workdir"
            )
        if holder["row"] is None:
            report(f"a row of a killed sweep still runs in {folder}: waiting for its end")
        else:
            report(f"the row of a killed sweep still runs (process {holder['row']}): asked to save and stop")
            os.kill(holder["row"], signal.SIGTERM)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
