"""The folder of compiled steps, which all programs of a user share, so that only a first start compiles.

Call `use_compilation_cache` before JAX is imported: JAX, and the processes that a program starts, read the environment.
"""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
LARGEST_BYTES = 4 * 2**30
"""If the folder is larger at a start, the entries that were not used for the longest time are deleted."""

_MINIMUM = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_SECONDS = "0"  # all executables are stored: a start has about a hundred that take less than a tenth of a second each


def use_compilation_cache() -> None:
    """Sets the folder in the environment, unless the user has set one.

    Entries are for one version of JAX's compiler and one kind of processor. Several processes may use the folder at
    once. Without a folder that can be written, nothing is set.
    """
    os.environ.setdefault(_MINIMUM, _SECONDS)
    if VARIABLE in os.environ:
        return
    folder = _user_cache() / "kd_local" / f"jaxlib-{version('jaxlib')}-{_processor()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(folder, os.W_OK):
        _delete_oldest(folder)
        os.environ[VARIABLE] = str(folder)


def _user_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given) if given.startswith("/") else Path("~/.cache").expanduser()


def _processor() -> str:
    """A digest of the processor's kind and instruction sets, since compiled code runs only on the same ones."""
    flags = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:8]


def _delete_oldest(folder: Path) -> None:
    entries = sorted(_entries(folder), reverse=True)
    total = 0
    for _, size, path in entries:
        total += size
        if total > LARGEST_BYTES:
            with suppress(OSError):
                path.unlink()


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """The time of the last use, the bytes and the path of each entry."""
    for path in folder.iterdir():
        with suppress(OSError):  # another process deletes it
            found = path.stat()
            yield max(found.st_atime, found.st_mtime), found.st_size, path
