"""Streamed splits: a prepared folder, its batches, and a check for workers and memory that remain."""

import contextlib
import gc
import json
import multiprocessing
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_local.data import Examples, StreamedSplit
from kd_local.data.prepared import PreparedSplit, find

EXAMPLES, SIZE, BATCH = 30, 16, 7
SHARED = Path("/dev/shm")


@pytest.fixture(scope="module")
def streamed_folder(prepare_once: Any, photograph: Any) -> Path:
    """Photographs from 20x46 to 49x17, so that all crops are of whole images, in two shards."""
    examples = [(photograph(20 + i, 46 - i, seed=i), i * 3 % 1000) for i in range(EXAMPLES)]
    return find("imagenet2012", prepare_once("imagenet2012", shards=2, train=examples, validation=examples[:5]))


@pytest.fixture(scope="module")
def prepared(streamed_folder: Path) -> PreparedSplit:
    return PreparedSplit(streamed_folder, "train")


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checks that no worker and no shared memory of this process remain."""
    opened: list[str] = []
    init = SharedMemory.__init__

    def recording(self: SharedMemory, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        opened.append(self.name)

    monkeypatch.setattr(SharedMemory, "__init__", recording)
    yield
    gc.collect()  # tracebacks hold what was read
    assert multiprocessing.active_children() == []
    deadline = time.monotonic() + 20
    while left := [name for name in opened if (SHARED / name).exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def split_of(prepared: PreparedSplit, *, workers: int = 0, chosen: Any = None) -> StreamedSplit:
    return StreamedSplit(prepared, image_size=SIZE, workers=workers, chosen=chosen)


def steps_of(split: Examples, first: int, count: int, **further: Any) -> list[Any]:
    with contextlib.closing(split.training_batches(seed=5, batch_size=BATCH, start_step=first, **further)) as batches:
        # Copies: what shared memory is under batches is freed with them.
        return [(step, chosen, images.copy(), labels.copy()) for step, chosen, images, labels in islice(batches, count)]


def assert_same_steps(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a[0] == b[0]
        assert all(np.array_equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))


def damaged(prepare: Any, photograph: Any, image: bytes) -> tuple[PreparedSplit, str]:
    """A split with one damaged record, and the text that names it."""
    examples = [(photograph(30, 20, seed=i), i) for i in range(12)]
    examples[5] = (image, 5)
    folder = find("imagenet2012", prepare("imagenet2012", shards=2, train=examples))
    prepared = PreparedSplit(folder, "train")
    index = prepared.labels().tolist().index(5)
    (info,) = json.loads((folder / "dataset_info.json").read_text())["splits"]
    first = int(info["shardLengths"][0])
    shard, record = (0, index) if index < first else (1, index - first)
    return prepared, rf"^record {record} of .*imagenet2012-train.array_record-0000{shard}-of-00002: "
