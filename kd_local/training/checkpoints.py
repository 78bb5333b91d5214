"""Checkpoints that can be trusted after a crash; the one file behind which orbax stands.

A checkpoint counts once a manifest with a digest of each of its files lies beside them, and only
while every file still matches it. The order is write, commit, manifest, and only then the deletion
of older ones, so that at every moment at which a process can be killed the newest checkpoint that
counts is whole. A newer one that is damaged or unfinished is reported and moved aside, where it
stays until this happens again.

Not for several processes yet: each would write the manifest.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from jaxtyping import PyTree

MANIFEST = "manifest.json"
_ASIDE = ".damaged"
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
_warn = logging.getLogger(__name__).warning


class CheckpointError(Exception):
    """A checkpoint could not be saved or restored; the text says which, why, and what is left."""


@final
class Checkpoints:
    """The last few checkpoints of one run, in a directory of their own; a context manager.

    Args:
        directory: where they lie, a folder for each step; it is made if need be.
        keep: how many are kept.
        report: is told of each checkpoint that is damaged or unfinished.

    Raises:
        ValueError: `keep` is less than 1.
        CheckpointError: the directory cannot be made or written.
    """

    def __init__(self, directory: Path, *, keep: int = 3, report: Callable[[str], None] = _warn) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: use 1 or more")
        self.directory = directory.absolute()
        self._keep = keep
        self._report = report
        self._pending: tuple[int, Future[None]] | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            raise CheckpointError(f"checkpoints cannot be kept in {directory}: {error.strerror}") from error
        absl_logging.get_absl_logger().addFilter(self._not_from_orbax)
        self._manager = self._open()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")

    def save(self, step: int, tree: PyTree) -> None:
        """Copy a tree of arrays, and write it in the background.

        The arrays may be donated as soon as this returns. It waits for the save before.

        Args:
            step: greater than that of any checkpoint in the directory.
            tree: nested dicts, tuples and NamedTuples of arrays, sharded or not.

        Raises:
            CheckpointError: the step is not greater, or this save or the one before failed.
        """
        self.wait()
        newest = max(self._manager.all_steps(), default=None)
        if newest is not None and newest >= step:
            raise CheckpointError(
                f"checkpoint {step} cannot be saved in {self.directory}, which holds checkpoint "
                f"{newest}: restore that one first, or use an empty directory"
            )
        with self._saving(step):
            args = ocp.args.StandardSave(jax.tree.map(_copied_if_on_host, tree))
            self._manager.save(step, args=args)
            self._pending = (step, self._executor.submit(self._seal, step))

    def wait(self) -> None:
        """Wait until the last save is on the disk and counts.

        Raises:
            CheckpointError: it failed.
        """
        if self._pending is None:
            return
        step, future = self._pending
        wait_for([future])
        self._pending = None
        with self._saving(step):
            future.result()

    def restore_latest(self, like: PyTree) -> tuple[int, PyTree] | None:
        """The step and the tree of the newest undamaged checkpoint; None where there is none.

        Args:
            like: arrays, or `jax.ShapeDtypeStruct` with shardings, as the tree shall hold them.

        Raises:
            CheckpointError: the checkpoint does not fit `like`, or cannot be read.
        """
        self.wait()
        good, damaged = self._newest_good()
        used = "training starts from the beginning" if good is None else f"using checkpoint {good}"
        misfit, tree = None, None
        try:
            for old in self.directory.glob(f"*{_ASIDE}") if damaged else ():
                shutil.rmtree(old)
            for step, damage in damaged.items():
                self._report(f"checkpoint {step} is {damage}: {used}")
                os.replace(self.directory / str(step), self.directory / f"{step}{_ASIDE}")
            if damaged:
                self._reopen()
            if good is None:
                return None
            misfit = _misfit(self._manager.item_metadata(good).tree, like)
            if misfit is None:
                tree = self._manager.restore(good, args=ocp.args.StandardRestore(like))
        except Exception as error:
            raise CheckpointError(f"checkpoint {good} in {self.directory} cannot be restored: {error}") from error
        if misfit is not None:
            raise CheckpointError(
                f"checkpoint {good} in {self.directory} is of something else: {misfit}; "
                "use the config it was trained with, or another directory"
            )
        return good, tree

    def last_good(self) -> int | None:
        """The newest step whose checkpoint is whole at this moment; None where there is none."""
        return self._newest_good()[0]

    def close(self) -> None:
        """Wait, and let go of all threads.

        Raises:
            CheckpointError: the last save failed.
        """
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self._manager.close()
            absl_logging.get_absl_logger().removeFilter(self._not_from_orbax)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            # What ended the run is the error to see.
            self._report(str(failure))

    def _open(self) -> ocp.CheckpointManager:
        # Nothing here lets orbax delete older checkpoints: it would do so before the manifest.
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            # Otherwise orbax reads metadata here, and fails on some damage to it.
            lightweight_initialize=True,
        )
        handler = ocp.StandardCheckpointHandler()
        handlers = ocp.DefaultCheckpointHandlerRegistry()
        for args in (ocp.args.StandardSave, ocp.args.StandardRestore):
            handlers.add("default", args, handler)
        return ocp.CheckpointManager(self.directory, options=options, handler_registry=handlers)

    def _reopen(self) -> None:
        # What a failed save has left to raise is of no more use.
        with suppress(Exception):
            self._manager.close()
        self._manager = self._open()

    def _seal(self, step: int) -> None:
        """In the background: wait for orbax's commit, write the manifest, delete older ones.

        Orbax calls `AsyncOptions.post_finalization_callback` before the commit, when files are
        still to be written; hence a thread of our own.
        """
        self._manager.wait_until_finished()
        folder = self.directory / str(step)
        paths = sorted(folder.rglob("*"))
        for path in (*paths, folder, self.directory):
            _sync(path)
        digests = {str(p.relative_to(folder)): _digest(p) for p in paths if p.is_file()}
        temporary = folder / f"{MANIFEST}.tmp"
        temporary.write_text(json.dumps(digests, indent=1))
        _sync(temporary)
        os.replace(temporary, folder / MANIFEST)
        _sync(folder)
        for old in sorted(self._manager.all_steps())[: -self._keep]:
            self._manager.delete(old)

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Turn what fails in here into a CheckpointError, and leave nothing of the step behind."""
        try:
            yield
        except Exception as error:
            if self._damage(step) is not None:
                shutil.rmtree(self.directory / str(step), ignore_errors=True)
            with suppress(OSError):
                self._reopen()
            text = f"checkpoint {step} could not be saved in {self.directory}: {error}"
            # The text is all that orbax's and tensorstore's errors have in common.
            if any(full in str(error) for full in _FULL):
                text = f"the disk that holds {self.directory} is full: checkpoint {step} could not be saved"
            good = self.last_good()
            left = "there is no" if good is None else f"checkpoint {good} is the last"
            raise CheckpointError(f"{text}; {left} good one") from error

    def _newest_good(self) -> tuple[int | None, dict[int, str]]:
        """The newest whole checkpoint, and what is wrong with each that is newer."""
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            damage = self._damage(step)
            if damage is None:
                return step, damaged
            damaged[step] = damage
        return None, damaged

    def _damage(self, step: int) -> str | None:
        folder = self.directory / str(step)
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

    @staticmethod
    def _not_from_orbax(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


def _copied_if_on_host(leaf: jax.Array) -> jax.Array:
    """On the CPU orbax reads the very buffer that the caller is about to donate."""
    if all(device.platform != "cpu" for device in leaf.devices()):
        return leaf
    return jax.device_put(leaf, leaf.sharding, may_alias=False)


def _misfit(found: PyTree, expected: PyTree) -> str | None:
    """The first array that two trees do not have in common, with what it is in each."""
    has, needs = _leaves(found), _leaves(expected)
    for name in (*needs, *has):
        if has.get(name) != needs.get(name):
            is_there, wanted = has.get(name, "missing"), needs.get(name, "nothing")
            return f"{name} is {is_there}, expected {wanted}"
    return None


def _leaves(tree: PyTree) -> dict[str, str]:
    """The dtype and shape of each array by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
