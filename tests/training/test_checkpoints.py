"""Checkpoints come back bit by bit, or not at all, after damage and failing writes. Those of killed and of several
processes: tests/system."""

import errno
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from kd_local.training.checkpoints import MANIFEST, CheckpointError, Checkpoints
from tests.support.checkpoints import assert_same_bits, example_tree, files_of, restore, save_all

FULL = os.strerror(errno.ENOSPC)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 4 and 8, to be copied."""
    directory = tmp_path_factory.mktemp("saved")
    save_all(directory, 4, 8)
    return directory


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copied")


def test_a_restored_tree_has_the_same_bits_structure_and_shardings(copied: Path) -> None:
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
def test_a_checkpoint_moves_between_one_device_and_a_mesh(copied: Path, spec: PartitionSpec) -> None:
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


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    save_all(tmp_path, 1, 2, 3, 10, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "3"]
    save_all(tmp_path, 11, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "11"]


def test_files_left_by_a_killed_process_are_deleted(copied: Path) -> None:
    shutil.copytree(copied / "8", copied / "9.orbax-checkpoint-tmp")
    save_all(copied, 12)
    assert sorted(path.name for path in copied.iterdir()) == ["12", "4", "8"]


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "flipped": lambda file, other: file.write_bytes(flipped(file.read_bytes())),
    "truncated": lambda file, other: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file, other: file.write_bytes(b""),
    "deleted": lambda file, other: file.unlink(),
    "a list": lambda file, other: file.write_text("[]"),
    "null": lambda file, other: file.write_text("null"),
    "an object": lambda file, other: file.write_text("{}"),
    "of another step": lambda file, other: shutil.copy(other, file),
}
"""Ways to damage a file, given the file of the same name of another step."""


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


@pytest.mark.usually("flipped")
@pytest.mark.parametrize("how", DAMAGE)
def test_every_damaged_file_is_found_and_named(saved: Path, tmp_path: Path, how: str) -> None:
    names = files_of(saved / "8")
    assert MANIFEST in names and "default/_METADATA" in names and "_CHECKPOINT_METADATA" in names
    found = 0
    for number, name in enumerate(names):
        others = sorted((saved / "4" / name).parent.glob("*")) if (saved / "4" / name).parent.exists() else []
        other = saved / "4" / name if (saved / "4" / name).exists() else others[0]
        if how == "of another step" and (saved / "8" / name).read_bytes() == other.read_bytes():
            continue
        found += 1
        directory = shutil.copytree(saved, tmp_path / str(number))
        DAMAGE[how](directory / "8" / name, other)
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
    assert found > 4


def test_a_file_without_permission_ends_with_its_name(copied: Path) -> None:
    for name in ("default", "default/_METADATA", MANIFEST):
        path = copied / "8" / name
        mode = path.stat().st_mode
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read every file")
        with pytest.raises(CheckpointError, match=rf"{path}.* cannot be read \(Permission denied\)"):
            restore(copied)
        path.chmod(mode)
    assert restore(copied) == (8, [])


def test_every_changed_bit_of_the_manifest_is_found(saved: Path, tmp_path: Path) -> None:
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


def test_all_damaged_is_refused_and_everything_is_kept(copied: Path) -> None:
    for step in ("4", "8"):
        (copied / step / "default" / "_METADATA").write_bytes(b"")
    kept = files_of(copied)
    text = (
        f"{copied} has no checkpoint to resume from: checkpoint 8 is damaged (default/_METADATA: digest differs), "
        "checkpoint 4 is damaged (default/_METADATA: digest differs). Nothing was moved or deleted: restore the files, "
        "or remove that folder to start from the beginning"
    )
    for _ in range(2):
        with pytest.raises(CheckpointError) as raised:
            restore(copied)
        assert str(raised.value) == text and files_of(copied) == kept


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


def test_damaged_metadata_of_an_older_checkpoint_are_ignored(copied: Path) -> None:
    shutil.copytree(copied / "4", copied / "2")
    (copied / "2" / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 9e99}')
    (copied / "8" / MANIFEST).write_text("")
    step, reports = restore(copied)
    assert step == 4 and len(reports) == 1


def test_an_empty_directory_restores_nothing(tmp_path: Path) -> None:
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
def test_a_tree_of_another_run_is_refused(copied: Path, change: Callable[[PyTree], PyTree], text: str) -> None:
    with Checkpoints(copied) as checkpoints, pytest.raises(CheckpointError) as raised:
        checkpoints.restore_latest(change(example_tree()))
    assert f"checkpoint 8 in {copied} " in str(raised.value) and text in str(raised.value)
    assert restore(copied) == (8, [])


DISK_IS_FULL = "the disk that holds {} is full: checkpoint 8 could not be saved"
TOO_LARGE = (
    "checkpoint 8 could not be saved in {}: a file would be larger than the process or the file system may write "
    "(`ulimit -f`)"
)


@pytest.mark.usually("error3-text3", "error1-the disk that holds {} is full: checkpoint 8 could not be saved")
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, FULL), DISK_IS_FULL),
        (ValueError(f"RESOURCE_EXHAUSTED: Failed to write 83 bytes: {FULL}"), DISK_IS_FULL),
        (OSError(errno.EDQUOT, "over quota"), DISK_IS_FULL),
        (OSError(errno.EFBIG, "too large"), TOO_LARGE),
        (ValueError("Failed to write 83 bytes [os_error_code='27']"), TOO_LARGE),
        (ValueError("OCDBT ... [os_error_code='5']"), "checkpoint 8 could not be saved in {}: Input/output error"),
        (OSError(errno.EIO, "broken"), "checkpoint 8 could not be saved in {0}: [Errno 5] broken: '{0}/8/origin.json'"),
    ],
)
def test_errors_of_the_disk_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str
) -> None:
    def fail(*args: object) -> None:
        raise error

    def fail_to_save_8(checkpoints: Checkpoints) -> str:
        checkpoints.wait()
        with monkeypatch.context() as patch:
            # After the commit and before the manifest, nothing may be deleted.
            patch.setattr("os.replace", fail)
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


def test_late_errors_of_writes_are_hidden_and_others_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("asyncio")
    with Checkpoints(tmp_path):
        for error in (OSError(errno.ENOSPC, "full"), ValueError("OCDBT"), ValueError("another")):
            logger.error("Future exception was never retrieved", exc_info=(type(error), error, None))
        logger.error("a task took long")
    assert [record.getMessage() for record in caplog.records] == [
        "Future exception was never retrieved",  # the ValueError of something else
        "a task took long",
    ]


def test_a_failed_save_does_not_hide_the_error_that_ended_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "broken")

    reports: list[str] = []
    opened = Checkpoints(tmp_path, report=reports.append)
    with pytest.raises(ZeroDivisionError), opened as checkpoints:
        monkeypatch.setattr("os.replace", fail)
        checkpoints.save(1, example_tree(1))
        raise ZeroDivisionError
    (report,) = reports
    assert report.startswith("checkpoint 1 could not be saved")


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match=f"checkpoints cannot be kept in {path}: "):
            Checkpoints(path)


def test_keep_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0: use 1 or more"):
        Checkpoints(tmp_path, keep=0)
