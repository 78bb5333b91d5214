"""One program at a time in a folder: the file `.lock`, which its holder creates and removes.

Needed of a file system that several hosts share:

- The creation of a hard link, or of a file with O_EXCL, is atomic. A program whose creation fails does not start, on
  any host. NFS, Lustre, GPFS, BeeGFS and CephFS have this; object stores mounted as folders often do not.
- `flock` works among the processes of one host. By it the system knows whether the holder of a lock on this host still
  runs, so the lock of a killed program is taken over. Without it, that lock has to be removed by hand.

A lock of another host is never taken over, since nothing here shows whether its holder runs. The error has its name.
"""

import fcntl
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from experiments.folders.lock_holder import WIDTH, Holder, Process

LOCK = ".lock"
_WRITTEN_SECONDS = 1.0  # the longest time between the creation of an empty lock and its record


class InUseError(ValueError):
    """Another program holds the lock; the text names it and a way out."""


class Interrupted(Exception):
    """`stopped` became true while the lock was waited for."""


def lock_folder(folder: Path) -> "FolderLock":
    """Make a folder, and hold its lock.

    Raises:
        InUseError: another program holds the lock.
        ValueError: the folder cannot be made or written.
    """
    lock = FolderLock(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise ValueError(f"workdir {str(folder)!r} cannot be used: {error.strerror}; use another --workdir") from None
    return lock


class FolderLock:
    """The lock of a folder, held by this process, and by every process that inherits `descriptor` until it ends.

    Args:
        folder: an existing folder.
        report: called with a message before the rows of a killed sweep are waited for, after asking them to save and
            stop; if None, such a row is an error.
        stopped: whether to give up while waiting.
    """

    def __init__(
        self,
        folder: Path,
        *,
        report: Callable[[str], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder = folder
        self._path = folder / LOCK
        self._report = report
        self._stopped = stopped
        self._file: int | None = None
        self._rows: set[int] = set()
        self._recording = threading.Lock()
        self._holder = Holder.this()

    def acquire(self) -> None:
        """Hold the lock from now on. Without effect if it is held.

        Raises:
            InUseError: another program holds the lock.
            Interrupted: `stopped` became true.
            OSError: the folder cannot be written.
        """
        asked: set[Process | None] = set()
        started = time.monotonic()
        while self._file is None and not self._create():
            file = self._open()
            if file is None:
                continue  # its holder has removed it
            try:
                if self._take(file, asked, new=time.monotonic() - started < _WRITTEN_SECONDS):
                    self._file = file
                    return
            finally:
                if self._file is None:
                    os.close(file)
            if self._stopped():
                raise Interrupted
            time.sleep(0.1)

    def release(self) -> None:
        """Remove the lock, unless a row that still runs holds it too. Without effect if it is not held."""
        file, self._file = self._file, None
        if file is None:
            return
        with suppress(OSError):
            if not self._rows and _same(file, self._path):
                self._path.unlink()
        os.close(file)

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.release()

    @property
    def descriptor(self) -> int:
        assert self._file is not None
        return self._file

    def row_started(self, process: int) -> None:
        """Record the process of a row that runs now, which may outlive this one."""
        with self._recording:
            self._rows.add(process)
            os.pwrite(self.descriptor, self._holder.record(self._rows), 0)

    def row_ended(self, process: int) -> None:
        """Record that a row runs no more."""
        with self._recording:
            self._rows.remove(process)
            os.pwrite(self.descriptor, self._holder.record(self._rows), 0)

    def _create(self) -> bool:
        """Create the lock with its record, unless there is one."""
        if os.path.lexists(self._path):
            return False
        file, name = tempfile.mkstemp(prefix=f"{LOCK}-", dir=self._folder)
        linked = False
        try:
            os.fchmod(file, 0o644)  # others may read who holds it
            os.pwrite(file, self._holder.record(), 0)
            with suppress(OSError):  # there is no flock
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                os.link(name, self._path)
            except FileExistsError:
                return False
            except OSError:  # there are no hard links
                return self._create_alone()
            self._file = file
            linked = True
        finally:
            os.unlink(name)
            if not linked:
                os.close(file)
        return True

    def _create_alone(self) -> bool:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        os.pwrite(file, self._holder.record(), 0)
        self._file = file
        return True

    def _open(self) -> int | None:
        try:
            return os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InUseError(self._text(f"or its {LOCK} cannot be opened ({error.strerror})", removable=True)) from None

    def _take(self, file: int, asked: set[Process | None], *, new: bool) -> bool:
        """Take over the lock if its holder has ended.

        Args:
            file: a descriptor of it.
            asked: see `_ask_to_stop`.
            new: whether its record may be missing because its holder writes it now.

        Raises:
            InUseError: another program holds the lock, or may hold it.
        """
        busy = self._busy(file)
        holder = Holder.parse(os.pread(file, WIDTH, 0))
        if not _same(file, self._path):
            return False  # its holder has removed it
        if not busy:
            if holder is not None and not holder.on_this_host():
                raise InUseError(self._text(f"by {holder}", removable=True))
            if new and not os.fstat(file).st_size:
                return False
            os.pwrite(file, self._holder.record(), 0)
            os.truncate(file, WIDTH)
            return True
        if holder is not None and holder.same_numbers() and not holder.process.runs():
            # It has ended, but a process that it started runs; or another program takes over the lock now.
            if self._report is not None:
                for row in holder.rows or (None,):
                    self._ask_to_stop(row, file, asked)
            elif not new:
                raise InUseError(self._text(f"by a process that was started by {holder}"))
        elif holder is not None or not new:
            raise InUseError(self._text(f"by {holder or 'a program that has just started'}"))
        return False

    def _busy(self, file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is no flock
            holder = Holder.parse(os.pread(file, WIDTH, 0))
            raise InUseError(self._text(f"by {holder or 'a program'}", removable=True)) from None
        return False

    def _ask_to_stop(self, row: Process | None, file: int, asked: set[Process | None]) -> None:
        """Ask a recorded row to stop, unless it is in `asked`.

        Only a process that runs since the recorded time and has the lock open is signalled. Until the present holder
        has written its record, the file has that of an earlier holder, so the caller reads it again each time.
        """
        assert self._report is not None
        if row is not None and not (row.runs() and row.has_open(file) and row.number != os.getpid()):
            row = None
        if row in asked:
            return
        asked.add(row)
        if row is None:
            self._report(f"a row of a killed sweep still runs in {self._folder}: waiting for its end")
            return
        self._report(f"the row of a killed sweep still runs (process {row.number}): asked to save and stop")
        with suppress(ProcessLookupError):  # it may have ended since
            os.kill(row.number, signal.SIGTERM)

    def _text(self, who: str, *, removable: bool = False) -> str:
        way = "wait for its end, or use another --workdir"
        if removable:
            way = f"wait for its end, use another --workdir, or remove {self._path} if that process has ended"
        return f"workdir {str(self._folder)!r} is in use {who}: {way}"


def _same(file: int, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except OSError:
        return False
