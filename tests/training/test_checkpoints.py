"""Checkpoints come back bit by bit, or not at all: after damage, a full disk and kill -9. Those of several processes:
test_joint_checkpoints.py."""

import errno
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

import kd_local
from kd_local.training.checkpoints import MANIFEST, CheckpointError, Checkpoints

FULL = os.strerror(errno.ENOSPC)


def example_tree(seed: int = 0) -> PyTree:
    """Parameters of two dtypes, and the state of an optimizer with empty parts."""
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "stage1/0": {"kernel": jax.random.normal(keys[0], (3, 3, 4, 8))},
        "head": {"bias": jax.random.normal(keys[1], (8,)).astype(jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    return {
        "params": params,
        "batch_stats": {},
        "opt_state": optimizer.init(params),
        "step": jnp.asarray(seed, jnp.int32),
    }


def assert_same_bits(tree: PyTree, expected: PyTree) -> None:
    assert str(jax.tree.structure(tree)) == str(jax.tree.structure(expected))
    for leaf, value in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == value.dtype and leaf.shape == value.shape
        assert np.asarray(leaf).tobytes() == np.asarray(value).tobytes()


def save_all(directory: Path, *steps: int, keep: int = 3) -> None:
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, example_tree(step))


def restore(directory: Path) -> tuple[int | None, list[str]]:
    """The step restored, after its tree was compared, and the reports."""
    reports: list[str] = []
    with Checkpoints(directory, report=reports.append) as checkpoints:
        restored = checkpoints.restore_latest(example_tree())
        assert checkpoints.last_good() == (restored and restored[0])
    if restored is None:
        return None, reports
    assert_same_bits(restored[1], example_tree(restored[0]))
    return restored[0], reports


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 4 and 8, to be copied."""
    directory = tmp_path_factory.mktemp("saved")
    save_all(directory, 4, 8)
    return directory


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copied")


def test_comes_back_bit_by_bit_with_its_structure_and_places(copied: Path) -> None:
    with Checkpoints(copied) as checkpoints:
        like = example_tree()
        restored = checkpoints.restore_latest(like)
    assert restored is not None and restored[0] == 8
    assert_same_bits(restored[1], example_tree(8))
    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored[1]) == places


def test_arrays_may_be_donated_right_after_a_save(tmp_path: Path) -> None:
    def tree() -> PyTree:
        return {"a": jnp.arange(1 << 20, dtype=jnp.float32), "b": jnp.ones((512, 512))}

    change = jax.jit(lambda tree: jax.tree.map(lambda leaf: -leaf, tree), donate_argnums=0)
    jax.block_until_ready(change(tree()))
    current = tree()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, current)
        for _ in range(7):
            before, current = current, change(current)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        restored = checkpoints.restore_latest(tree())
    assert restored is not None
    assert_same_bits(restored[1], tree())


@pytest.mark.skipif("jax.device_count() < 8", reason="needs 8 devices")
@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("data")])
def test_moves_between_one_device_and_a_mesh(copied: Path, spec: PartitionSpec) -> None:
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def on_mesh(leaf: jax.Array) -> NamedSharding:
        divisible = bool(leaf.shape) and leaf.shape[0] % 8 == 0
        return NamedSharding(mesh, spec if divisible else PartitionSpec())

    spread = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_mesh(leaf)),
        example_tree(),
    )
    with Checkpoints(copied) as checkpoints:
        restored = checkpoints.restore_latest(spread)
        assert restored is not None
        for leaf, place in zip(jax.tree.leaves(restored[1]), jax.tree.leaves(spread), strict=True):
            assert leaf.sharding == place.sharding
        assert_same_bits(restored[1], example_tree(8))
        checkpoints.save(9, restored[1])
        back = checkpoints.restore_latest(example_tree())
    assert back is not None and back[0] == 9
    assert_same_bits(back[1], example_tree(8))
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(back[1]))


def test_keeps_the_last_ones_and_nothing_else(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2, 3, 10, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "3"]
    save_all(tmp_path, 11, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "11"]


def test_leftovers_of_a_killed_process_go_away(copied: Path) -> None:
    shutil.copytree(copied / "8", copied / "9.orbax-checkpoint-tmp")
    save_all(copied, 12)
    assert sorted(path.name for path in copied.iterdir()) == ["12", "4", "8"]


@pytest.mark.parametrize("how", ["flipped", "deleted", "truncated"])
def test_every_damaged_file_is_found_and_named(saved: Path, tmp_path: Path, how: str) -> None:
    names = files_of(saved / "8")
    assert MANIFEST in names and "default/_METADATA" in names and "_CHECKPOINT_METADATA" in names
    for number, name in enumerate(names):
        directory = shutil.copytree(saved, tmp_path / str(number))
        path = directory / "8" / name
        content = bytearray(path.read_bytes())
        if how == "flipped":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif how == "truncated":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
        step, (report,) = restore(directory)
        assert step == 4 and report.endswith("): using checkpoint 4")
        if how == "deleted":
            state = "unfinished" if name == MANIFEST else "damaged"
            assert report.startswith(f"checkpoint 8 is {state} ({name}: missing)")
        elif name != MANIFEST:
            assert report.startswith(f"checkpoint 8 is damaged ({name}: digest differs)")
        else:
            # Where damage to the manifest shows depends on where it is.
            assert report.startswith("checkpoint 8 is damaged (")
        assert restore(directory) == (4, [])


def test_every_bit_of_the_manifest_counts(saved: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(saved, tmp_path / "copied")
    path = directory / "8" / MANIFEST
    whole = path.read_bytes()
    with Checkpoints(directory) as checkpoints:
        for place in random.Random(0).sample(range(len(whole)), 300):
            content = bytearray(whole)
            content[place] ^= 1
            path.write_bytes(content)
            assert checkpoints.last_good() == 4, whole[place - 20 : place + 20]
        path.write_bytes(whole)
        assert checkpoints.last_good() == 8


def test_all_damaged_starts_from_the_beginning(copied: Path) -> None:
    for step in ("4", "8"):
        (copied / step / "default" / "_METADATA").write_bytes(b"")
    restored, reports = restore(copied)
    assert restored is None
    assert reports == [
        f"checkpoint {step} is damaged (default/_METADATA: digest differs): training starts from the beginning"
        for step in (8, 4)
    ]
    assert restore(copied) == (None, [])


def test_the_step_of_a_damaged_checkpoint_can_be_saved_again(copied: Path) -> None:
    (copied / "5.damaged").mkdir()
    for _ in range(2):
        (copied / "8" / MANIFEST).unlink()
        with Checkpoints(copied, report=lambda text: None) as checkpoints:
            restored = checkpoints.restore_latest(example_tree())
            assert restored is not None and restored[0] == 4
            checkpoints.save(8, example_tree(8))
        assert sorted(path.name for path in copied.iterdir()) == ["4", "8", "8.damaged"]
        assert restore(copied) == (8, [])


def test_damaged_metadata_of_an_older_checkpoint_does_no_harm(copied: Path) -> None:
    shutil.copytree(copied / "4", copied / "2")
    (copied / "2" / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 9e99}')
    (copied / "8" / MANIFEST).write_text("")
    step, reports = restore(copied)
    assert step == 4 and len(reports) == 1


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert restore(tmp_path / "new" / "directory") == (None, [])


def test_a_step_that_is_not_greater_is_refused(copied: Path) -> None:
    for step in (8, 7):
        text = rf"checkpoint {step} cannot be saved .* checkpoint 8: restore"
        with Checkpoints(copied) as checkpoints, pytest.raises(CheckpointError, match=text):
            checkpoints.save(step, example_tree(step))
    assert restore(copied) == (8, [])


def without_bias(tree: PyTree) -> PyTree:
    return tree | {"params": {"stage1/0": tree["params"]["stage1/0"], "head": {}}}


def with_extra(tree: PyTree) -> PyTree:
    return tree | {"teacher": jnp.zeros(2)}


def with_wider_kernel(tree: PyTree) -> PyTree:
    kernel = {"kernel": jnp.zeros((3, 3, 4, 9))}
    return tree | {"params": tree["params"] | {"stage1/0": kernel}}


def with_other_dtype(tree: PyTree) -> PyTree:
    return tree | {"step": jnp.zeros((), jnp.float32)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without_bias, "params/head/bias is bfloat16[8], expected nothing"),
        (with_extra, "teacher is missing, expected float32[2]"),
        (with_wider_kernel, "kernel is float32[3, 3, 4, 8], expected float32[3, 3, 4, 9]"),
        (with_other_dtype, "step is int32[], expected float32[]"),
    ],
)
def test_another_tree_is_refused_by_name(copied: Path, change: Callable[[PyTree], PyTree], text: str) -> None:
    with Checkpoints(copied) as checkpoints, pytest.raises(CheckpointError) as raised:
        checkpoints.restore_latest(change(example_tree()))
    assert f"checkpoint 8 in {copied} " in str(raised.value) and text in str(raised.value)
    assert restore(copied) == (8, [])


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


DISK_IS_FULL = "the disk that holds {} is full: checkpoint 8 could not be saved"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, FULL), DISK_IS_FULL),
        (ValueError(f"RESOURCE_EXHAUSTED: Failed to write 83 bytes: {FULL}"), DISK_IS_FULL),
        (OSError(errno.EIO, "broken"), "checkpoint 8 could not be saved in {}: [Errno 5] broken"),
    ],
)
def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    def fail(*args: object) -> None:
        raise error

    def fail_to_save_8(checkpoints: Checkpoints) -> str:
        checkpoints.wait()
        with monkeypatch.context() as patch:
            # Behind the commit, before the manifest: nothing may be deleted yet.
            patch.setattr("kd_local.training.checkpoints.os.replace", fail)
            with pytest.raises(CheckpointError) as raised:
                checkpoints.save(8, example_tree(8))
                checkpoints.wait()
        return str(raised.value)

    text = text.format(tmp_path)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert fail_to_save_8(checkpoints) == f"{text}; there is no good one"
        assert checkpoints.last_good() is None
        checkpoints.save(4, example_tree(4))
        assert fail_to_save_8(checkpoints) == f"{text}; checkpoint 4 is the last good one"
        assert checkpoints.last_good() == 4
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
    assert restore(tmp_path) == (4, [])


def test_orbax_is_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="absl"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, example_tree(1))
        checkpoints.restore_latest(example_tree())
    assert not [record for record in caplog.records if record.name == "absl"]


def test_what_ended_a_run_is_not_hidden_by_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "broken")

    reports: list[str] = []
    opened = Checkpoints(tmp_path, report=reports.append)
    with pytest.raises(ZeroDivisionError), opened as checkpoints:
        monkeypatch.setattr("kd_local.training.checkpoints.os.replace", fail)
        checkpoints.save(1, example_tree(1))
        raise ZeroDivisionError
    (report,) = reports
    assert report.startswith("checkpoint 1 could not be saved")


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=f"checkpoints cannot be kept in {path}: "):
            Checkpoints(path)


def test_keep_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0: use 1 or more"):
        Checkpoints(tmp_path, keep=0)


def numbers(step: int) -> PyTree:
    """What a process that is to be killed saves at a step."""
    return {"a": jnp.full((64, 64), step, jnp.float32), "b": {"c": jnp.full(9, -step, jnp.int32)}}


def save_forever(directory: Path) -> None:
    checkpoints = Checkpoints(directory, keep=1, report=lambda text: None)
    step, _ = checkpoints.restore_latest(numbers(0)) or (0, None)
    while True:
        step += 1
        checkpoints.save(step, numbers(step))
        # Whoever reads this may rely on the checkpoint before.
        print(step - 1, flush=True)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(kd_local.__file__).parents[1])}
    moments = random.Random(0)
    for _ in range(3):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
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


if __name__ == "__main__":
    save_forever(Path(sys.argv[1]))
