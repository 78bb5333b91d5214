"""Workers that decode images: batches do not depend on them, and they end with the process that started them."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from kd_local.data import DataError
from kd_local.data.prepared import PreparedSplit, find
from kd_local.data.streamed import _set_up_worker
from tests.support.processes import ROOT
from tests.support.streamed import EXAMPLES, SHARED, SIZE, assert_same_steps, damaged, split_of, steps_of

pytest.importorskip("tensorflow_datasets")
grain = pytest.importorskip("grain")
pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize(("workers", "first"), [(1, 0), (2, 6)])
def test_batches_do_not_depend_on_workers_and_the_first_step(workers: int, first: int, prepared: PreparedSplit) -> None:
    chosen = np.delete(np.arange(EXAMPLES), [3, 4, 17])
    # Four batches in an epoch: from 6 on it is the middle of the second.
    reference = steps_of(split_of(prepared, chosen=chosen), 0, 9)
    steps = steps_of(split_of(prepared, workers=workers, chosen=chosen), first, 9 - first)
    assert_same_steps(steps, reference[first:])


def test_evaluation_batches_do_not_depend_on_workers(prepared: PreparedSplit) -> None:
    alone, workers = (split_of(prepared, workers=n, chosen=np.arange(2, EXAMPLES - 1)) for n in (0, 2))
    for one, other in zip(alone.evaluation_batches(8), workers.evaluation_batches(8), strict=True):
        assert all(map(np.array_equal, one, other))


def test_closed_batches_have_freed_their_shared_memory(
    prepared: PreparedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_array = grain.multiprocessing.SharedMemoryArray
    free, opened = shared_array.close_shm_async, []
    from_metadata = shared_array.from_metadata

    def opening(metadata: Any) -> Any:
        opened.append(metadata.name)
        return from_metadata(metadata)

    def slowly(shm: SharedMemory, unlink: bool) -> None:
        time.sleep(0.2)
        free(shm, unlink)

    monkeypatch.setattr(shared_array, "from_metadata", opening)
    monkeypatch.setattr(shared_array, "close_shm_async", slowly)
    steps_of(split_of(prepared, workers=1), 0, 3)
    assert len(opened) >= 6  # images and labels
    assert not [name for name in opened if (SHARED / name).exists()]


def test_a_damaged_image_is_named_and_ends_all_workers(prepare: Any, photograph: Any) -> None:
    prepared, place = damaged(prepare, photograph, b"no image")
    started = time.monotonic()
    batches = split_of(prepared, workers=2).training_batches(seed=0, batch_size=2)
    with pytest.raises(ValueError, match=place + "its image does not decode: .*Copy this file again"):
        for _ in batches:
            pass
    assert time.monotonic() - started < 60
    assert multiprocessing.active_children() == []


def test_a_record_that_cannot_be_read_is_named_by_a_worker(prepare: Any, photograph: Any) -> None:
    examples = [(photograph(30, 20, seed=i), i) for i in range(12)]
    folder = find("imagenet2012", prepare("imagenet2012", train=examples))
    split = split_of(PreparedSplit(folder, "train"), workers=1)
    file = folder / "imagenet2012-train.array_record-00000-of-00001"
    content = bytearray(file.read_bytes())
    content[4000:4100] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"record \d+ of .*array_record-00000-of-00001: it cannot be read: "):
        list(split.evaluation_batches(4))


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
    batches = split_of(prepared, workers=2).training_batches(seed=0, batch_size=3)
    next(batches)
    for worker in _workers(2):
        # Ctrl-C reaches them too, but it is the main process that ends them.
        os.kill(worker, signal.SIGINT)
    for _ in range(8):
        next(batches)
    os.kill(_workers(2)[0], signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(DataError, match="worker process that decodes images ended: it was killed, probably because"):
        for _ in batches:
            pass
    assert time.monotonic() - killed < 30
    assert multiprocessing.active_children() == []
    # The files of the batch that it was about to hand on remain there until the main process ends.
    for file in SHARED.glob("psm_*"):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_size in (3 * SIZE * SIZE * 3, 3 * 4):
                SharedMemory(file.name).unlink()


def _started() -> list[int]:
    """The child processes that are workers, including those that have not started completely."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_a_worker_killed_before_it_has_started_is_an_error(prepared: PreparedSplit) -> None:
    chosen = np.arange(EXAMPLES).repeat(20_000)  # more than a pipe takes
    batches = split_of(prepared, workers=1, chosen=chosen).training_batches(seed=0, batch_size=3)
    while not (workers := _started()):
        time.sleep(0.001)
    os.kill(workers[0], signal.SIGKILL)
    with pytest.raises(DataError, match="ended: it was killed"):
        next(batches)


def test_deleted_batches_end_their_workers(prepared: PreparedSplit) -> None:
    batches = split_of(prepared, workers=2).training_batches(seed=0, batch_size=3)
    assert len(_workers(2)) == 2
    del batches
    assert multiprocessing.active_children() == []


def test_workers_do_not_use_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_accelerator")

    def seen(_: int) -> str:
        return f"{jax.config.jax_platforms} {os.environ['JAX_PLATFORMS']} {jax.devices()[0].platform}"

    steps = grain.MapDataset.range(1).map(seen).to_iter_dataset()
    options = grain.MultiprocessingOptions(num_workers=1)
    assert list(steps.mp_prefetch(options, worker_init_fn=_set_up_worker)) == ["cpu cpu cpu"]


PROGRAM = """
import multiprocessing, sys, time
from multiprocessing.shared_memory import SharedMemory
import numpy as np
from kd_local.data import StreamedSplit
from kd_local.data.prepared import PreparedSplit
from pathlib import Path

if __name__ == "__main__":
    split = StreamedSplit(PreparedSplit(Path(sys.argv[1]), "train"), image_size=8, workers=1, chosen=np.arange(29))
    batches = split.training_batches(seed=0, batch_size=4)
    for _ in range(3):
        next(batches)
    left = SharedMemory(create=True, size=1)  # as of a batch that no process takes
    if sys.argv[2] == "wait":
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(600)
    assert "tensorflow" not in sys.modules
"""


@pytest.fixture
def program(streamed_folder: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a program that takes batches and then ends, or waits, with them in hand."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)

    def start(then: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(file), str(streamed_folder), then],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_a_program_that_ends_with_open_batches_prints_nothing(program: Callable[..., subprocess.Popen[str]]) -> None:
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
        # A process that has ended remains as a zombie if no process waits for it.
        return not re.search(r"\) Z ", Path(f"/proc/{process}/stat").read_text())
    except FileNotFoundError:
        return False
