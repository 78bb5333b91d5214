"""A manifest of digests, written last, that marks a folder as complete."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from kd_local.files import DamagedFileError, read_json, replace_text, sync, with_name

MANIFEST = "manifest.json"

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""The errors of a missing file. Any other error may be temporary: of a disk, the network, or too many open files."""


def write_manifest(folder: Path) -> None:
    """Flushes all files of a folder and the folder itself to the disk, then writes the manifest.

    Raises:
        OSError: a file cannot be read or written.
    """
    paths = sorted(folder.rglob("*"))
    for path in (*paths, folder, folder.parent):
        sync(path)
    digests = {str(path.relative_to(folder)): _digest(path) for path in paths if path.is_file()}
    replace_text(folder / MANIFEST, json.dumps(digests, indent=1))


def damage(folder: Path) -> str | None:
    """A text with the first wrong file of a folder and its damage; None if every file matches the manifest.

    Raises:
        OSError: a file exists and cannot be read, so that its contents are unknown. `filename` is set.
    """
    name = MANIFEST
    try:
        for name, digest in _digests(folder).items():
            if _digest(folder / name) != digest:
                return f"damaged ({name}: digest differs)"
    except DamagedFileError:
        return f"damaged ({name}: cannot be read)"
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return f"{'unfinished' if name == MANIFEST else 'damaged'} ({name}: missing)"
    return None


def _digests(folder: Path) -> Mapping[str, str]:
    """The digests by the paths of the files, which are in the folder or below it.

    Raises:
        DamagedFileError: the manifest is damaged.
    """
    digests = read_json(folder / MANIFEST, {}, way_out="use another checkpoint")
    for name, digest in digests.items():
        path = PurePosixPath(name)
        if not isinstance(digest, str) or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise DamagedFileError(f"{name!r} in {folder / MANIFEST} is not the digest of a file of this folder")
    if not digests:
        raise DamagedFileError(f"{folder / MANIFEST} names no file")
    return digests


def _digest(path: Path) -> str:
    try:
        # To read from a pipe would wait.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise with_name(error, path) from error
