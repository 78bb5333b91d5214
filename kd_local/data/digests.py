"""Digests that identify a data set by its content, or more cheaply by its files."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from kd_local.data.splits import Data, Split

WHOLE_BYTES = 2**30
"""Files of at most this size together are read whole."""


def content_digest(data: Data) -> str | None:
    """A digest of the images and labels of all splits, in order; None if a split is not held in memory."""
    digest = hashlib.sha256()
    for name, split in (("train", data.train), ("test", data.test), ("validation", data.validation)):
        if split is None:
            continue
        if not isinstance(split, Split):
            return None
        for array in (split.images, split.labels):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def files_digest(folder: Path) -> str:
    """A digest of the files of a prepared data set, a folder that `prepared.find` returned.

    The digest covers the version, the sizes of the splits and of their shards in examples and bytes, the features, and
    the name and size of each file of examples. It also covers the bytes of these files if they have at most
    `WHOLE_BYTES` together. Larger sets with different contents in files of equal sizes have equal digests.

    Raises:
        OSError: a file cannot be read.
        ValueError: dataset_info.json is damaged.
    """
    info = json.loads((folder / "dataset_info.json").read_text())
    known = {name: info.get(name) for name in ("name", "configName", "version", "splits")}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    shards = sorted(path for path in folder.iterdir() if ".array_record" in path.name)
    features = [path for path in (folder / "features.json",) if path.exists()]
    sizes = {path: path.stat().st_size for path in shards}
    for path in shards:
        digest.update(f"{path.name} {sizes[path]} ".encode())
    for path in (*features, *(shards if sum(sizes.values()) <= WHOLE_BYTES else ())):
        digest.update(file_digest(path).encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """A digest of the bytes of a file, cached until the file's size or time of change differs.

    Raises:
        OSError: the file cannot be read.
    """
    state = path.stat()
    return _file_digest(path.absolute(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
