"""Who holds the lock of a folder: its record in the lock file, and whether that process runs."""

import json
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

WIDTH = 4096
"""Bytes of a record: one write of one size, so that a reader never sees parts of two."""
_UNNAMED = ("localhost", "localhost.localdomain")


@dataclass(frozen=True)
class Process:
    """A process of a host.

    Attributes:
        number: its process ID.
        started: when it started, in clock ticks since the host's start; None where there is no /proc.
    """

    number: int
    started: int | None

    @classmethod
    def of(cls, number: int) -> "Process":
        return cls(number, _start_time(number))

    def runs(self) -> bool:
        """Whether this process runs here; not if another one has its number now, or if that cannot be known."""
        return self.number > 0 and self.started is not None and self.started == _start_time(self.number)

    def has_open(self, file: int) -> bool:
        """Whether this process, which runs here, has the file of a descriptor open too."""
        with suppress(OSError):  # another user's process, or one that has ended
            for name in os.listdir(f"/proc/{self.number}/fd"):
                with suppress(OSError):
                    if os.path.samestat(os.stat(f"/proc/{self.number}/fd/{name}"), os.fstat(file)):
                        return True
        return False


@dataclass(frozen=True)
class Holder:
    """The program that holds a lock.

    Attributes:
        host: its name.
        boot: an identifier of the host's start; empty where the system has none.
        space: an identifier of the process numbers' namespace; empty where the system has none.
        process: of the program.
        rows: the processes of the rows that a sweep runs.
        since: when the lock was taken.
    """

    host: str
    boot: str
    space: str
    process: Process
    rows: tuple[Process, ...]
    since: str

    @classmethod
    def this(cls) -> "Holder":
        """This process, from now on."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        return cls(socket.gethostname(), _boot(), _space(), Process.of(os.getpid()), (), since)

    @classmethod
    def parse(cls, text: bytes) -> "Holder | None":
        """The record in a text; None if it is damaged, or of an earlier version, which never removed it."""
        try:
            values: dict[str, Any] = json.loads(text)
            rows = tuple(map(_process, values["rows"]))
            holder = cls(**{**values, "process": _process(values["process"]), "rows": rows})
        except (ValueError, TypeError, KeyError):
            return None
        texts = (holder.host, holder.boot, holder.space, holder.since)
        return holder if all(isinstance(each, str) for each in texts) else None

    def record(self, rows: Iterable[int] = ()) -> bytes:
        """The record, with the processes of the rows that run now."""
        now = replace(self, rows=tuple(map(Process.of, rows)))
        return json.dumps(asdict(now)).ljust(WIDTH - 1).encode() + b"\n"

    def on_this_host(self) -> bool:
        """Whether the lock was taken on this host, before or after its last start."""
        if self.boot and self.boot == _boot():
            return True
        return self.host == socket.gethostname() and self.host not in _UNNAMED

    def same_numbers(self) -> bool:
        """Whether its process numbers mean the same here."""
        return self.on_this_host() and (self.boot, self.space) == (_boot(), _space())

    def __str__(self) -> str:
        return f"process {self.process.number} on host {self.host} since {self.since}"


def _process(values: Any) -> Process:
    numbers = {field.name: values[field.name] for field in fields(Process)}
    if not all(type(each) is int or (name == "started" and each is None) for name, each in numbers.items()):
        raise TypeError(f"{values} is no process")
    return Process(**numbers)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(process: int) -> int | None:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    values = stat.rpartition(")")[2].split()  # from field 3 on; field 2, the name, may hold spaces and brackets
    return None if values[0] in ("Z", "X") else int(values[19])
