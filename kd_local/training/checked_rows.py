"""Crash-safe rows of numbers in a file: a row is valid only if it matches its checksum in a second file.

After a kill, a crash or damage, the missing rows can be found and written again. Rows can be written in any order, and
rows can be added to a file later. One process writes at a time.
"""

import fcntl
import io
import math
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

_LOOK_SECONDS = 0.2
_VALUE, _CHECKSUM = np.dtype("<f4"), np.dtype("<u4")


@dataclass(frozen=True)
class CheckedRows:
    """Float32 rows in a .npy file, and their checksums in a second file in the same folder.

    Attributes:
        path: path of the rows' file; it ends in .npy.
        name: part of every checksum, so that rows written under another name are not valid.
        shape: (rows, ...); the file may have more rows.
    """

    path: Path
    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return sum(len(file.header) + file.row_bytes * self.shape[0] for file in self._files)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * _VALUE.itemsize

    def missing(self) -> Int64[np.ndarray, " rows"]:
        """The indices of the rows that are missing or damaged. Reads all rows.

        Raises:
            OSError: a file cannot be read.
        """
        here = np.zeros(self.shape[0], bool)
        present = min(len(here), *(file.rows for file in self._files))
        if present > 0:
            values, checksums = self._files
            sums = np.fromfile(checksums.path, _CHECKSUM, present, offset=len(checksums.header))
            # Not through a memory map: on a full tmpfs, reading a hole of a file would kill the process.
            with values.path.open("rb") as file:
                file.seek(len(values.header))
                for i in range(present):
                    here[i] = sums[i] == self._checksum(i, file.read(values.row_bytes))
        return np.flatnonzero(~here).astype(np.int64)

    @contextmanager
    def writing(self, waiting: Callable[[], None] = lambda: None) -> Iterator["Writer"]:
        """Creates or enlarges the files, and gives a function that writes a row.

        While another process writes, it waits. The rows that the other one wrote are then no longer missing. A file
        system without `flock` lets both write, which is slower: rows that both write at once may be missing afterwards.

        Args:
            waiting: called once before it waits.

        Raises:
            OSError: for example, the disk is full; raised here or by the function.
        """
        values, checksums = self._files
        checksums.path.touch()
        with checksums.path.open("r+b", buffering=0) as second:
            _lock(second, waiting)
            for file in self._files:
                file.make()
            with values.path.open("r+b", buffering=0) as first:
                yield self._writer(first, second)

    def _writer(self, first: io.FileIO, second: io.FileIO) -> "Writer":
        values, checksums = self._files

        def write(row: int, numbers: np.ndarray) -> None:
            content = np.ascontiguousarray(numbers, _VALUE).tobytes()
            _write(first, len(values.header) + row * values.row_bytes, content)
            checksum = np.array(self._checksum(row, content), _CHECKSUM)
            _write(second, len(checksums.header) + row * checksums.row_bytes, checksum.tobytes())

        return write

    def read(self) -> Float32[np.ndarray, "rows *shape"]:
        """A memory map of the rows; missing rows have undefined contents."""
        return np.memmap(self.path, _VALUE, "r", len(self._files[0].header), self.shape)

    @cached_property
    def _files(self) -> tuple["_File", "_File"]:
        sums = self.path.with_suffix(".crc32.npy")
        return _File(self.path, self.shape, _VALUE), _File(sums, self.shape[:1], _CHECKSUM)

    def _checksum(self, row: int, content: bytes) -> int:
        # It includes name and index, so that no row is taken for another row.
        return zlib.crc32(content, zlib.crc32(f"{self.name}/{row}".encode()))


@runtime_checkable
class Writer(Protocol):
    """Writes the row with the index `row`."""

    def __call__(self, row: int, numbers: np.ndarray) -> None: ...


@dataclass(frozen=True)
class _File:
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @cached_property
    def header(self) -> bytes:
        """The .npy header. Its length does not depend on the number of rows, so that rows can be added."""
        file = io.BytesIO()
        described = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, described)
        return file.getvalue()

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Complete rows in the file by its size; negative if the file does not exist."""
        size = self.path.stat().st_size if self.path.exists() else 0
        return (size - len(self.header)) // self.row_bytes

    def make(self) -> None:
        """Creates the file or enlarges it for all rows; it is never made smaller."""
        self.path.touch()
        if self.rows > self.shape[0]:
            return
        with self.path.open("r+b") as file:
            file.write(self.header)
            file.truncate(len(self.header) + self.shape[0] * self.row_bytes)


def _write(file: io.FileIO, offset: int, content: bytes) -> None:
    # Not through a memory map: on a full disk that would kill the process.
    file.seek(offset)
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _lock(file: io.FileIO, waiting: Callable[[], None]) -> None:
    """Waits until no other process has locked the file, and locks it until it is closed."""
    waits = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not waits:
                waiting()
            waits = True
        except OSError:  # there is no flock
            return
        time.sleep(_LOOK_SECONDS)
