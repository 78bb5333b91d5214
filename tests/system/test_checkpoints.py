"""Checkpoints of killed processes and on full disks: they are restored bit by bit, or not at all."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import PyTree

from kd_local.training.checkpoints import CheckpointError, Checkpoints
from tests.support.checkpoints import assert_same_bits, example_tree, restore, save_all
from tests.support.processes import finish_all, start_file

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


late_callbacks = pytest.mark.filterwarnings(
    # After the first failed write orbax closes its event loop; the other writes then call it.
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)


@late_callbacks
@pytest.mark.parametrize("found_by", ["save", "wait", "close"])
def test_a_full_disk(small_disk: Path, found_by: str) -> None:
    directory = small_disk / "checkpoints"
    large = {"a": jax.random.normal(jax.random.key(0), (1_000_000,))}
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, example_tree(1))
    checkpoints.save(2, large)
    with pytest.raises(CheckpointError) as raised:
        if found_by == "save":
            checkpoints.save(3, example_tree(3))
        else:
            getattr(checkpoints, found_by)()
    assert str(raised.value) == (
        f"the disk that holds {directory} is full: checkpoint 2 could not be saved; checkpoint 1 is the last good one"
    )
    if found_by != "close":
        checkpoints.save(4, example_tree(4))
        checkpoints.close()
        assert sorted(path.name for path in directory.iterdir()) == ["1", "4"]
    assert restore(directory) == (1 if found_by == "close" else 4, [])


@late_callbacks
def test_a_disk_with_no_byte_left(small_disk: Path) -> None:
    directory = small_disk / "checkpoints"
    save_all(directory, 1)
    filler = os.open(small_disk / "filler", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match=FULL):
        while True:
            os.write(filler, bytes(1024))
    os.close(filler)
    text = r"is full: checkpoint 2 could not be saved; checkpoint 1 is the last good one"
    with pytest.raises(CheckpointError, match=text), Checkpoints(directory) as checkpoints:
        checkpoints.save(2, example_tree(2))
    assert restore(directory) == (1, [])


def test_a_first_save_that_fails_has_one_message_and_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """All writes fail, because a file may not be as large as an array."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {f"a{i}": jax.random.normal(jax.random.key(i), (300, 300)) for i in range(20)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]))
    try:
        with pytest.raises(CheckpointError) as raised, Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert str(raised.value) == (
        f"checkpoint 1 could not be saved in {tmp_path}: a file would be larger than the process or the file "
        "system may write (`ulimit -f`); there is no good one"
    )
    time.sleep(0.5)  # for the writes that fail later
    assert capfd.readouterr().err == "" and not caplog.records
    assert not list(tmp_path.iterdir())


def numbers(step: int) -> PyTree:
    """The tree that a process saves at a step before it is killed."""
    return {"a": jnp.full((64, 64), step, jnp.float32), "b": {"c": jnp.full(9, -step, jnp.int32)}}


def save_forever(directory: Path) -> None:
    checkpoints = Checkpoints(directory, keep=1, report=lambda text: None)
    step, _ = checkpoints.restore_latest(numbers(0)) or (0, None)
    while True:
        step += 1
        checkpoints.save(step, numbers(step))
        # Once this is printed, the checkpoint before must be restorable.
        print(step - 1, flush=True)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    moments = random.Random(0)
    for _ in range(3):
        with start_file(__file__, tmp_path, devices_of_each=1) as process:
            assert process.stdout is not None
            known = [process.stdout.readline(), process.stdout.readline()]
            time.sleep(moments.uniform(0.1, 0.7))
            process.kill()
            known += process.stdout.readlines()
        reports: list[str] = []
        with Checkpoints(tmp_path, report=reports.append) as checkpoints:
            restored = checkpoints.restore_latest(numbers(0))
        assert restored is not None and restored[0] >= int(known[-1]) > 0
        assert_same_bits(restored[1], numbers(restored[0]))
        # Only what was between its commit and its manifest is unfinished, and it is the newest.
        assert all("unfinished" in report for report in reports) and len(reports) <= 1


CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def save_until_killed(directory: Path, last: int) -> None:
    """Saves step 1, then step 2 until the change of a file with this number, from 1, which kills this process."""
    count = 0

    def killing(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in CHANGES and str(arguments[0]).startswith(str(directory)):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    with Checkpoints(directory, keep=1, report=lambda text: None) as checkpoints:
        checkpoints.save(1, numbers(1))
        checkpoints.wait()
        sys.addaudithook(killing)
        checkpoints.save(2, numbers(2))
        checkpoints.wait()


def kill_at_each_change(directory: Path, stride: int) -> None:
    """Runs `save_until_killed` in a process for each of the changes 1, 1 + stride ..., until one of them is whole."""
    last, status = 1, -signal.SIGKILL
    while status == -signal.SIGKILL:
        if not (child := os.fork()):  # before JAX has started, so that it may fork
            save_until_killed(directory / str(last), last)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(last, status, flush=True)
        last += stride


@pytest.mark.usually("17")
@pytest.mark.parametrize("stride", [17, 1])
def test_killed_at_each_change_of_a_file_of_a_save(tmp_path: Path, stride: int) -> None:
    program = start_file(__file__, tmp_path, stride, devices_of_each=1, PYTHONWARNINGS="ignore::RuntimeWarning")
    ((status, out, err),) = finish_all([program], 600)
    assert status == 0, err
    moments = [line.split() for line in out.splitlines()]
    assert len(moments) > 30 / stride and {killed for _, killed in moments[:-1]} == {"-9"} and moments[-1][1] == "0"
    found = set()
    for moment, _ in moments:
        directory = tmp_path / moment
        with Checkpoints(directory, report=lambda text: None) as checkpoints:
            restored = checkpoints.restore_latest(numbers(0))
            assert restored is not None, moment
            found.add(restored[0])
            assert_same_bits(restored[1], numbers(restored[0]))
            checkpoints.save(3, numbers(3))
    assert found == {1, 2}


if __name__ == "__main__":
    kill_at_each_change(Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else save_forever(Path(sys.argv[1]))
