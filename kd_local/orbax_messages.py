"""Turns errors of orbax and tensorstore into a sentence, and hides their messages that a user cannot act on."""

import errno
import gc
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from absl import logging as absl_logging

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NUMBER = re.compile(r"os_error_code='(\d+)'")


def reason(error: Exception, directory: Path, step: int) -> str:
    """The reason why a checkpoint could not be saved. Errors of tensorstore are recognised by their text."""
    text = str(error)
    match = _NUMBER.search(text)
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    if number in _FULL or any(os.strerror(full) in text for full in _FULL):
        return f"the disk that holds {directory} is full: checkpoint {step} could not be saved"
    if number == errno.EFBIG:
        return (
            f"checkpoint {step} could not be saved in {directory}: a file would be larger than the process or the "
            "file system may write (`ulimit -f`)"
        )
    if match:
        text = os.strerror(int(match[1]))
    return f"checkpoint {step} could not be saved in {directory}: {text}"


class Quiet:
    """Hides orbax's log and, after a failed write, the messages of its other writes.

    After a failed write orbax closes its event loop. Each later write then calls this loop, which Python reports with a
    traceback, and each later failure is logged as an exception that was never retrieved.
    """

    def __init__(self) -> None:
        self._usual = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        self._absl, self._asyncio = absl_logging.get_absl_logger(), logging.getLogger("asyncio")
        self._absl.addFilter(_not_from_orbax)
        self._asyncio.addFilter(_asked_for)

    def end(self, *, failed: bool) -> None:
        """Shows messages again. If a save has failed, its late messages stay hidden until the process ends."""
        self._absl.removeFilter(_not_from_orbax)
        if failed:
            gc.collect()  # this logs the failures
            return
        self._asyncio.removeFilter(_asked_for)
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._usual

    def _unraisable(self, what: Any) -> None:
        of_orbax = isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed"
        # A write that fails while Python shuts down finds no modules.
        if not of_orbax and not sys.is_finalizing():
            self._usual(what)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _asked_for(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    of_a_write = isinstance(error, OSError) or "OCDBT" in str(error) or _NUMBER.search(str(error))
    return "never retrieved" not in record.getMessage() or not of_a_write
