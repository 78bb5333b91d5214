"""A manifest of digests, written last, that marks a folder as complete."""

import hashlib
import json
import os
from pathlib import Path

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Flushes all files of a folder and the folder itself to the disk, then writes the manifest.

    Raises:
        OSError: a file cannot be read or written.
    """
    paths = sorted(folder.rglob("*"))
    for path in (*paths, folder, folder.parent):
        _sync(path)
    digests = {str(path.relative_to(folder)): _digest(path) for path in paths if path.is_file()}
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(digests, indent=1))
    _sync(temporary)
    os.replace(temporary, folder / MANIFEST)
    _sync(folder)


def damage(folder: Path) -> str | None:
    """A text with the first wrong file of a folder and its damage; None if every file matches the manifest."""
    name = MANIFEST
    try:
        for name, digest in json.loads((folder / MANIFEST).read_text()).items():
            if _digest(folder / name) != digest:
                return f"damaged ({name}: digest differs)"
    except FileNotFoundError:
        return f"{'unfinished' if name == MANIFEST else 'damaged'} ({name}: missing)"
    except (OSError, ValueError):
        return f"damaged ({name}: cannot be read)"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
