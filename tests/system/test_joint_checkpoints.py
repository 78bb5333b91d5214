"""Checkpoints of two processes, with damage, full disks and kills, restored by two processes and by one."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jaxtyping import PyTree

from kd_local.parallel import device_mesh, hosts, move, on_every_device, over_the_batch
from kd_local.training.checkpoints import CheckpointError, Checkpoints
from tests.support.checkpoints import files_of
from tests.support.processes import finish_all, free_port, said_values, say, start_file

FULL = os.strerror(errno.ENOSPC)


def joint_numbers(step: int) -> PyTree:
    """The tree that two processes save: arrays that each has, and an array that is divided over their devices."""
    rows = np.random.default_rng(step).normal(size=(16, 5)).astype(np.float32)
    return {"same": {"a": rows[:3], "b": rows[0].astype(jnp.bfloat16)}, "divided": rows, "step": np.int32(step)}


def on_all_devices(tree: PyTree) -> PyTree:
    mesh = device_mesh(jax.device_count())
    whole, divided = on_every_device(mesh), over_the_batch(mesh, 16)
    return {name: move(part, divided if name == "divided" else whole) for name, part in tree.items()}


def has_numbers(tree: PyTree, step: int) -> bool:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(joint_numbers(step)), strict=True)
    return all(
        np.asarray(shard.data).tobytes() == np.asarray(value[shard.index]).tobytes()
        for leaf, value in pairs
        for shard in leaf.addressable_shards
    )


def goes_on(directory: Path, *steps: str) -> None:
    """Restores, and saves these steps while it computes with the other."""
    reports: list[str] = []
    with Checkpoints(directory, keep=2, report=reports.append) as checkpoints:
        step, tree = checkpoints.restore_latest(on_all_devices(joint_numbers(0))) or (None, None)
        say(step, step and has_numbers(tree, step), reports)
        total = jax.jit(jnp.sum, out_shardings=on_every_device(device_mesh(jax.device_count())))
        for text in steps:
            tree = on_all_devices(joint_numbers(int(text)))
            checkpoints.save(int(text), tree)
            for _ in range(20):
                total(tree["divided"]).block_until_ready()
        checkpoints.wait()
        say(checkpoints.last_good())


def fails(directory: Path) -> None:
    """Writing fails in process 1, sealing in process 0, the save itself in process 1; after each the next is tried."""

    class Failing:
        def result(self, timeout: float | None = None) -> None:
            raise OSError(errno.ENOSPC, FULL)

    handler = ocp.StandardCheckpointHandler
    write = handler.async_save

    async def write_in_vain(*args: object, **kwargs: object) -> list:
        return [*await write(*args, **kwargs), Failing()]

    async def broken(*args: object, **kwargs: object) -> list:
        raise OSError(errno.EIO, "broken")

    def replace_in_vain(*args: object) -> None:
        raise OSError(errno.EIO, "broken")

    def attempt(step: int) -> None:
        started = time.monotonic()
        try:
            checkpoints.save(step, on_all_devices(joint_numbers(step)))
            checkpoints.wait()
            say(step)
        except CheckpointError as error:
            say(str(error), time.monotonic() - started < 20)

    def failing(process: int, owner: object, name: str, instead: Callable) -> AbstractContextManager:
        return patch.object(owner, name, instead) if jax.process_index() == process else nullcontext()

    with Checkpoints(directory) as checkpoints:
        attempt(1)
        with failing(1, handler, "async_save", write_in_vain):
            attempt(2)
        attempt(3)
        with failing(0, os, "replace", replace_in_vain):
            attempt(4)
        attempt(1)
        with failing(1, handler, "async_save", broken):
            attempt(5)
        attempt(6)


def opens(directory: Path) -> None:
    try:
        Checkpoints(directory / str(jax.process_index()))
    except CheckpointError as error:
        say(str(error))


def saves_forever(directory: Path) -> None:
    total = jax.jit(jnp.sum, out_shardings=on_every_device(device_mesh(jax.device_count())))
    try:
        with Checkpoints(directory, keep=1, report=lambda text: None) as checkpoints:
            step, _ = checkpoints.restore_latest(on_all_devices(joint_numbers(0))) or (0, None)
            while True:
                step += 1
                tree = on_all_devices(joint_numbers(step))
                checkpoints.save(step, tree)
                say(step - 1)
                total(tree["divided"]).block_until_ready()
    except Exception as error:
        if not hosts.is_loss(error):
            raise
        hosts.leave(3)


def start_both(what: str, directory: Path, *arguments: object, devices: int = 1) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [
        start_file(__file__, what, directory, port, index, *arguments, devices_of_each=devices) for index in range(2)
    ]


def said_by(programs: Sequence[subprocess.Popen[str]]) -> list[list[list]]:
    """The values of each process, after both have ended without an error."""
    ends = finish_all(programs, 60)
    assert [status for status, _, _ in ends] == [0, 0], ends
    return [said_values(out) for _, out, _ in ends]


def restore_joint(directory: Path) -> tuple[int, list[str]]:
    """The step that one process restores, on its eight devices and on the first, and the reports."""
    reports: list[str] = []
    with Checkpoints(directory, report=reports.append) as checkpoints:
        for like in (on_all_devices(joint_numbers(0)), jax.tree.map(jnp.asarray, joint_numbers(0))):
            restored = checkpoints.restore_latest(like)
            assert restored is not None and has_numbers(restored[1], restored[0])
            places = jax.tree.map(lambda leaf: leaf.sharding, like)
            assert jax.tree.map(lambda leaf: leaf.sharding, restored[1]) == places
    return restored[0], reports


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved-by-two") / "new"
    assert said_by(start_both("goes_on", directory, 1, 2, 3)) == [[[None, None, []], [3]]] * 2
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3"]
    return directory


def test_checkpoints_move_between_one_process_and_two(saved_by_two: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(saved_by_two, tmp_path / "copied")
    assert any("process_1" in name for name in files_of(directory / "3"))
    assert restore_joint(directory) == (3, [])
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(4, on_all_devices(joint_numbers(4)))
    assert said_by(start_both("goes_on", directory, 5, devices=4)) == [[[4, True, []], [5]]] * 2
    assert restore_joint(directory) == (5, [])


def test_a_damaged_checkpoint_is_reported_once_and_skipped_by_both(saved_by_two: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(saved_by_two, tmp_path / "copied")
    (damaged,) = (name for name in files_of(directory / "3") if name.endswith("ocdbt.process_1/manifest.ocdbt"))
    (directory / "3" / damaged).write_bytes(b"")
    report = f"checkpoint 3 is damaged ({damaged}: digest differs): using checkpoint 2"
    first, second = said_by(start_both("goes_on", directory, 3))
    assert (first, second) == ([[2, True, [report]], [3]], [[2, True, []], [3]])
    assert sorted(path.name for path in directory.iterdir()) == ["2", "3", "3.damaged"]


def test_an_error_in_one_process_is_raised_in_both(tmp_path: Path) -> None:
    full = f"the disk that holds {tmp_path} is full: checkpoint 2 could not be saved; checkpoint 1 is the last good one"
    older = (
        f"checkpoint 1 cannot be saved in {tmp_path}, which already has checkpoint 3: restore that checkpoint "
        "first, or use an empty directory"
    )
    broken = "checkpoint {} could not be saved in {}: {}[Errno 5] broken{}; checkpoint 3 is the last good one"
    for index, said in enumerate(said_by(start_both("fails", tmp_path))):
        sealing, saving = ("", "process 1: ") if index == 0 else ("process 0: ", "")
        file = f": {str(tmp_path / '4' / 'origin.json')!r}"
        sealing, saving = broken.format(4, tmp_path, sealing, file), broken.format(5, tmp_path, saving, "")
        assert said == [[1], [full, True], [3], [sealing, True], [older, True], [saving, True], [6]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "6"]
    assert restore_joint(tmp_path) == (6, [])


def test_a_directory_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    (first,), (second,) = said_by(start_both("opens", tmp_path))
    text = "it is not the same folder as in process 0: use a folder that all hosts share"
    assert first == [f"checkpoints cannot be kept in {tmp_path / '0'}: process 1: {text}"]
    assert second == [f"checkpoints cannot be kept in {tmp_path / '1'}: {text}"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_is_killed_at_any_moment(tmp_path: Path, killed: int) -> None:
    programs = start_both("saves_forever", tmp_path)
    try:
        known = 0
        while known < 3:
            assert programs[killed].stdout is not None
            line = programs[killed].stdout.readline()
            assert line, programs[killed].communicate()
            known = json.loads(line[5:])[0] if line.startswith("said ") else known
        time.sleep(random.Random(killed).uniform(0, 0.5))
        programs[killed].kill()
        started = time.monotonic()
        _, err = programs[1 - killed].communicate(timeout=30)
        print(f"process {killed} killed: the other ended after {time.monotonic() - started:.1f} s")
        # By the exception of a computation, or by the runtime where it did not compute.
        assert programs[1 - killed].returncode in (1, 3), err
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    step, reports = restore_joint(tmp_path)
    assert step >= known
    assert all("unfinished" in report for report in reports) and len(reports) <= 1


def main(what: str, directory: str, *arguments: str) -> None:
    port, index, *rest = arguments
    hosts.start(f"localhost:{port}", 2, int(index), heartbeat_seconds=5, start_seconds=30)
    {"goes_on": goes_on, "fails": fails, "opens": opens, "saves_forever": saves_forever}[what](Path(directory), *rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
