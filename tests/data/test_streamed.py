"""Batches of images that are not held in memory: the same from any step, in any process, with any workers."""

import contextlib
import gc
import importlib.util
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from kd_local.data import DataError, Examples, Share, StreamedSplit, epoch_order
from kd_local.data.crops import central_crop, random_box
from kd_local.data.prepared import PreparedSplit, find
from kd_local.data.streamed import _cause, _set_up_worker, crop_numbers

pytest.importorskip("tensorflow_datasets")
grain = pytest.importorskip("grain")

EXAMPLES, SIZE, BATCH = 30, 16, 7
ROOT = Path(__file__).parents[2]
SHARED = Path("/dev/shm")


@pytest.fixture(scope="module")
def folder(prepare_once: Any, photograph: Any) -> Path:
    """Photographs from 20x46 to 49x17, so that all crops are of whole images, in two shards."""
    examples = [(photograph(20 + i, 46 - i, seed=i), i * 3 % 1000) for i in range(EXAMPLES)]
    return find("imagenet2012", prepare_once("imagenet2012", shards=2, train=examples, validation=examples[:5]))


@pytest.fixture(scope="module")
def prepared(folder: Path) -> PreparedSplit:
    return PreparedSplit(folder, "train")


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No worker, and no shared memory that this process has been handed."""
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


def _split(prepared: PreparedSplit, *, workers: int = 0, chosen: Any = None) -> StreamedSplit:
    return StreamedSplit(prepared, image_size=SIZE, workers=workers, chosen=chosen)


def _steps(split: Examples, first: int, count: int, **further: Any) -> list[Any]:
    with contextlib.closing(split.training_batches(seed=5, batch_size=BATCH, start_step=first, **further)) as batches:
        # Copies: what shared memory is under batches is freed with them.
        return [(step, chosen, images.copy(), labels.copy()) for step, chosen, images, labels in islice(batches, count)]


def _assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a[0] == b[0]
        assert all(np.array_equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))


def test_is_examples_of_what_the_split_holds(prepared: PreparedSplit) -> None:
    split = _split(prepared)
    assert isinstance(split, Examples)
    assert (len(split), split.shape, prepared.shape) == (EXAMPLES, (SIZE, SIZE, 3), (None, None, 3))
    for step, chosen, images, labels in _steps(split, 0, 10):
        epoch, position = divmod(step, 5)
        rows = 2 if position == 4 else BATCH
        assert images.shape == (rows, SIZE, SIZE, 3) and images.dtype == np.uint8
        assert labels.shape == chosen.shape == (rows,) and labels.dtype == np.int32 and chosen.dtype == np.int64
        assert chosen.tolist() == epoch_order(5, epoch, EXAMPLES)[position * BATCH :][:rows].tolist()
        assert labels.tolist() == prepared.labels()[chosen].tolist()


def test_each_image_is_the_random_crop_of_its_epoch_and_place(prepared: PreparedSplit) -> None:
    boxes = []
    for step, chosen, images, _ in _steps(_split(prepared), 3, 4):
        for place, image in zip(chosen.tolist(), images, strict=True):
            ((_, encoded, _),) = prepared.encoded([place])
            decoded = Image.open(io.BytesIO(encoded))
            # In another form of the same: the counter is one number, of which each word has 64 bits.
            philox = np.random.Philox(key=5 + (step // 5 << 64), counter=(place << 128) + (1 << 192))
            uniform = np.floor(philox.random_raw(40) / 2.0**11) / 2.0**53
            left, top, width, height = random_box(*decoded.size, uniform.reshape(10, 4))
            boxes.append((left, top, width, height))
            part = decoded.crop((left, top, left + width, top + height))
            assert np.array_equal(image, np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    assert len(set(boxes)) == len(boxes)


RECORDED = [0.7392729637493114, 0.1727219477163251, 0.5406288079021218, 0.09103194331264786]


def test_crop_numbers_are_uniform_and_stay_what_they_are() -> None:
    numbers = np.stack([crop_numbers(2**64 - 1, 3, place) for place in range(500)])
    assert numbers.shape == (500, 10, 4) and 0 <= numbers.min() < 1e-3 and 1 - 1e-3 < numbers.max() < 1
    assert numbers.mean(axis=(0, 1)) == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(numbers)) == numbers.size
    # Recorded once: others would make another run of a resumed one.
    assert crop_numbers(1, 2, 3)[0].tolist() == RECORDED


@pytest.mark.parametrize(("workers", "first"), [(1, 0), (2, 6)])
def test_workers_and_the_step_it_starts_from_change_nothing(workers: int, first: int, prepared: PreparedSplit) -> None:
    chosen = np.delete(np.arange(EXAMPLES), [3, 4, 17])
    # Four batches in an epoch: from 6 on it is the middle of the second.
    reference = _steps(_split(prepared, chosen=chosen), 0, 9)
    _assert_same(_steps(_split(prepared, chosen=chosen), first, 9 - first), reference[first:])
    _assert_same(_steps(_split(prepared, workers=workers, chosen=chosen), first, 9 - first), reference[first:])
    labels = np.concatenate([step[3] for step in reference[4:8]])
    assert sorted(labels.tolist()) == sorted(prepared.labels()[chosen].tolist())


def test_shares_make_up_the_whole(prepared: PreparedSplit) -> None:
    split = _split(prepared)
    whole = _steps(split, 2, 4)
    shares = [
        _steps(split, 2, 4, share=Share(0, 2, 7)),  # batches of 7, and at the end of an epoch one of 2
        _steps(split, 2, 4, share=Share(1, 2, 7)),
    ]
    for all_of_it, first, second in zip(whole, *shares, strict=True):
        assert np.array_equal(first[1], all_of_it[1]) and np.array_equal(second[1], all_of_it[1])
        if len(all_of_it[1]) == BATCH:
            assert (len(first[2]), len(second[2])) == (3, 4)
            for part in (2, 3):
                assert np.array_equal(np.concatenate([first[part], second[part]]), all_of_it[part])
        else:
            _assert_same([first, second], [all_of_it, all_of_it])


def test_a_share_reads_its_own_rows_only(prepared: PreparedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    encoded = PreparedSplit.encoded
    monkeypatch.setattr(
        PreparedSplit, "encoded", lambda self, indices: (read.extend(indices), encoded(self, indices))[1]
    )
    ((_, chosen, images, _),) = _steps(_split(prepared), 0, 1, share=Share(1, 2, 1))
    assert len(images) == 4 and read == chosen[3:].tolist()
    read.clear()
    batches = list(_split(prepared).evaluation_batches(8, Share(0, 2, 2)))
    assert len(batches) == 4 and read == [i for i in range(EXAMPLES) if i % 8 < 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_hold_central_crops_in_order(workers: int, prepared: PreparedSplit) -> None:
    chosen = np.arange(2, EXAMPLES - 1)
    split = _split(prepared, workers=workers, chosen=chosen)
    batches = [tuple(part.copy() for part in batch) for batch in split.evaluation_batches(8)]
    assert [images.shape for images, _, _ in batches] == [(8, SIZE, SIZE, 3)] * 4
    assert [valid.tolist() for _, _, valid in batches] == [[True] * 8] * 3 + [[True] * 3 + [False] * 5]
    images, labels, valid = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert labels[valid].tolist() == prepared.labels()[chosen].tolist()
    for image, (_, encoded, _) in zip(images[valid], prepared.encoded(chosen.tolist()), strict=True):
        assert np.array_equal(image, central_crop(encoded, SIZE))
    assert not images[~valid].any() and not labels[~valid].any()
    halves = [list(_split(prepared, chosen=chosen).evaluation_batches(8, Share(i, 2, 2))) for i in (0, 1)]
    for whole, *parts in zip(batches, *halves, strict=True):
        for of_whole, *of_parts in zip(whole, *parts, strict=True):
            assert np.array_equal(of_whole, np.concatenate(of_parts))


def test_impossible_arguments_are_refused_at_once(prepared: PreparedSplit) -> None:
    with pytest.raises(ValueError, match="image_size 0: use 1 or more pixels"):
        StreamedSplit(prepared, image_size=0, workers=0)
    with pytest.raises(ValueError, match="workers -1: use 1 or more processes, or 0"):
        StreamedSplit(prepared, image_size=8, workers=-1)
    split = _split(prepared, workers=1)
    with pytest.raises(ValueError, match="batch_size 31 for 30 examples: use 1 to 30"):
        split.training_batches(seed=0, batch_size=31)
    with pytest.raises(ValueError, match="step -1: steps count from 0"):
        split.training_batches(seed=0, batch_size=3, start_step=-1)
    with pytest.raises(ValueError, match="batch_size 0: use 1 or more"):
        split.evaluation_batches(0)


def test_without_grain(prepared: PreparedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "grain" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r"pip install grain, or pip install 'kd_local\[imagenet\]'"):
        _split(prepared)


def _damaged(prepare: Any, photograph: Any, image: bytes) -> tuple[PreparedSplit, str]:
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_ends_all_workers(workers: int, prepare: Any, photograph: Any) -> None:
    whole = photograph(30, 20)
    prepared, place = _damaged(prepare, photograph, b"no image" if workers else whole[: len(whole) // 2])
    split = _split(prepared, workers=workers)
    started = time.monotonic()
    batches = split.training_batches(seed=0, batch_size=2)
    with pytest.raises(ValueError, match=place + "its image does not decode: .*Copy that file anew"):
        for _ in batches:
            pass
    assert time.monotonic() - started < 60
    assert multiprocessing.active_children() == []
    if not workers:
        with pytest.raises(ValueError, match=place + "its image does not decode: "):
            list(split.evaluation_batches(5))


def test_a_record_that_cannot_be_read_is_named_by_a_worker(prepare: Any, photograph: Any) -> None:
    examples = [(photograph(30, 20, seed=i), i) for i in range(12)]
    folder = find("imagenet2012", prepare("imagenet2012", train=examples))
    split = _split(PreparedSplit(folder, "train"), workers=1)
    file = folder / "imagenet2012-train.array_record-00000-of-00001"
    content = bytearray(file.read_bytes())
    content[4000:4100] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"record \d+ of .*array_record-00000-of-00001: it cannot be read: "):
        list(split.evaluation_batches(4))


def test_missing_shard(prepare: Any, photograph: Any) -> None:
    folder = find("imagenet2012", prepare("imagenet2012", shards=2, train=[(photograph(30, 20), 1)] * 4))
    (folder / "imagenet2012-train.array_record-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.array_record-00001-of-00002 is missing: "):
        PreparedSplit(folder, "train")


def _workers(count: int) -> list[int]:
    """The process ids of the workers, once they all run."""
    deadline = time.monotonic() + 60
    while True:
        found = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        if len(found) == count:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_worker_is_an_error(prepared: PreparedSplit) -> None:
    batches = _split(prepared, workers=2).training_batches(seed=0, batch_size=3)
    next(batches)
    for worker in _workers(2):
        # Ctrl-C reaches them too, but it is the main process that ends them.
        os.kill(worker, signal.SIGINT)
    for _ in range(8):
        next(batches)
    os.kill(_workers(2)[0], signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(DataError, match="worker process that decodes images ended: it was killed, as when memory"):
        for _ in batches:
            pass
    assert time.monotonic() - killed < 30
    assert multiprocessing.active_children() == []
    # What it was about to hand on lies there until the main process ends: here, of all files, those of such a batch.
    for file in SHARED.glob("psm_*"):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_size in (3 * SIZE * SIZE * 3, 3 * 4):
                SharedMemory(file.name).unlink()


def _started() -> list[int]:
    """Of the processes of this one those that are to be workers, however little of them there is yet."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_a_worker_killed_before_it_has_started_is_an_error(prepared: PreparedSplit) -> None:
    chosen = np.arange(EXAMPLES).repeat(20_000)  # more than a pipe takes
    batches = _split(prepared, workers=1, chosen=chosen).training_batches(seed=0, batch_size=3)
    while not (workers := _started()):
        time.sleep(0.001)
    os.kill(workers[0], signal.SIGKILL)
    with pytest.raises(DataError, match="ended: it was killed"):
        next(batches)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-signal.SIGBUS, "/dev/shm, where the batches lie, is full: make it larger, or use fewer workers"),
        (-signal.SIGTERM, "by SIGTERM"),
        (1, "its exit status is 1, and its own message stands above; a program of your own needs if __name__"),
    ],
)
def test_other_causes_of_an_end(code: int, text: str) -> None:
    assert _cause(code).startswith(text)


def test_batches_that_are_let_go_of_leave_nothing_behind(prepared: PreparedSplit) -> None:
    batches = _split(prepared, workers=2).training_batches(seed=0, batch_size=3)
    assert len(_workers(2)) == 2
    del batches
    assert multiprocessing.active_children() == []


def test_workers_leave_the_accelerator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_accelerator")

    def seen(_: int) -> str:
        return f"{jax.config.jax_platforms} {os.environ['JAX_PLATFORMS']} {jax.devices()[0].platform}"

    steps = grain.MapDataset.range(1).map(seen).to_iter_dataset()
    options = grain.MultiprocessingOptions(num_workers=1)
    assert list(steps.mp_prefetch(options, worker_init_fn=_set_up_worker)) == ["cpu cpu cpu"]


PROGRAM = """
import multiprocessing, sys, time
from kd_local.data import StreamedSplit
from kd_local.data.prepared import PreparedSplit
from pathlib import Path

if __name__ == "__main__":
    split = StreamedSplit(PreparedSplit(Path(sys.argv[1]), "train"), image_size=8, workers=1)
    batches = split.training_batches(seed=0, batch_size=4)
    for _ in range(3):
        next(batches)
    if sys.argv[2] == "wait":
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(600)
    assert "tensorflow" not in sys.modules
"""


@pytest.fixture
def program(folder: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a program that takes batches and then ends, or waits, with them in hand."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)

    def start(then: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(file), str(folder), then],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_a_program_may_end_with_batches_in_hand_and_is_silent(program: Callable[..., subprocess.Popen[str]]) -> None:
    running = program("end")
    assert running.communicate(timeout=120) == ("", "") and running.returncode == 0


def test_workers_end_with_a_main_process_that_is_killed(program: Callable[..., subprocess.Popen[str]]) -> None:
    with program("wait") as running:
        assert running.stdout is not None
        worker = int(running.stdout.readline())
        assert _is_running(worker)
        running.kill()
        deadline = time.monotonic() + 30
        while _is_running(worker):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _is_running(process: int) -> bool:
    try:
        # Where nobody waits for it, an ended process stays as a zombie.
        return not re.search(r"\) Z ", Path(f"/proc/{process}/stat").read_text())
    except FileNotFoundError:
        return False
