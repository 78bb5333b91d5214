"""Checkpoints that can be trusted after a crash; the one file behind which orbax stands.

A checkpoint counts once a manifest with a digest of each of its files lies beside them, and only
while every file still matches it. The order is write, commit, manifest, and only then the deletion
of older ones, so that at every moment at which a process can be killed the newest checkpoint that
counts is whole. A newer one that is damaged or unfinished is reported and moved aside, where it
stays until this happens again.

Of several processes each writes and reads its part of the arrays, in a folder that all their hosts
share. Everything of which there is one (manifest, deletion, what is damaged and which one counts)
is up to process 0, which tells the others. They wait for each other through `Barrier` and
orbax's barriers of the same kind, never through the devices: the background thread that finishes a
save may not meet with the main thread's computations there. What fails in one process fails in all.
"""

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import final

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from jaxtyping import PyTree

from kd_local.parallel import hosts
from kd_local.parallel.barriers import Barrier
from kd_local.training.manifest import MANIFEST, damage, write_manifest
from kd_local.training.older_checkpoints import with_step_count, without_step_count

__all__ = ["MANIFEST", "CheckpointError", "Checkpoints"]

_ASIDE = ".damaged"
_ITEM = "default"
_UNFINISHED = ocp.utils.TMP_DIR_SUFFIX
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
# How long one process may take to write, read or check its part of a checkpoint while the others wait for it. One that
# fails or is lost is found sooner; but orbax waits up to ten minutes for a folder that process 0 could not make.
_SECONDS = 1200
_warn = logging.getLogger(__name__).warning


class CheckpointError(Exception):
    """A checkpoint could not be saved or restored; the text says which, why, and what is left."""


@final
class Checkpoints:
    """The last few checkpoints of one run, in a directory of their own; a context manager.

    Of several processes each makes one, and all call `save`, `wait`, `restore_latest` and `close` in the same order.

    Args:
        directory: where they lie, a folder for each step; it is made if need be. All hosts share it.
        keep: how many are kept.
        report: is told of each checkpoint that is damaged or unfinished; in process 0.

    Raises:
        ValueError: `keep` is less than 1.
        CheckpointError: the directory cannot be made or written, or is not shared.
    """

    def __init__(self, directory: Path, *, keep: int = 3, report: Callable[[str], None] = _warn) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: use 1 or more")
        self.directory = directory.absolute()
        self._keep = keep
        self._report = report
        self._pending: tuple[int, Future[None]] | None = None
        self._barrier = Barrier("checkpoints")
        try:
            self._claim()
        except (OSError, hosts.HostsError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(f"checkpoints cannot be kept in {directory}: {reason}") from error
        absl_logging.get_absl_logger().addFilter(self._not_from_orbax)
        self._handler, self._checkpointer = self._open()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")

    def save(self, step: int, tree: PyTree) -> None:
        """Copy a tree of arrays, and write it in the background.

        The arrays may be donated as soon as this returns. It waits for the save before.

        Args:
            step: greater than that of any checkpoint in the directory.
            tree: nested dicts, tuples and NamedTuples of arrays, sharded or not; of several processes on the devices
                of all.

        Raises:
            CheckpointError: the step is not greater, or this save or the one before failed.
        """
        self.wait()
        with self._saving(step):
            newest = self._barrier.decide(lambda: max(self._steps(), default=None), seconds=_SECONDS)
        if newest is not None and newest >= step:
            raise CheckpointError(
                f"checkpoint {step} cannot be saved in {self.directory}, which holds checkpoint "
                f"{newest}: restore that one first, or use an empty directory"
            )
        with self._saving(step):
            args = ocp.args.StandardSave(jax.tree.map(_copied_if_on_host, tree))
            self._checkpointer.save(self._folder(step), args=ocp.args.Composite(**{_ITEM: args}))
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

        It may have been saved by more or fewer processes.

        Args:
            like: arrays, or `jax.ShapeDtypeStruct` with shardings, as the tree shall hold them.

        Raises:
            CheckpointError: the checkpoint does not fit `like`, or cannot be read.
        """
        self.wait()
        which, misfit, tree = "the newest checkpoint", None, None
        try:
            good = self._barrier.decide(self._set_damaged_aside, seconds=_SECONDS)
            if good is None:
                return None
            which, item = f"checkpoint {good}", self._folder(good) / _ITEM
            with self._barrier.together(seconds=_SECONDS):
                saved = self._handler.metadata(item).tree
                expected = with_step_count(like, saved)
                misfit = _misfit(saved, expected)
                if misfit is None:
                    tree = self._handler.restore(item, args=ocp.args.StandardRestore(expected))
        except Exception as error:
            self._barrier = Barrier("checkpoints")
            raise CheckpointError(f"{which} in {self.directory} cannot be restored: {error}") from error
        if misfit is not None:
            raise CheckpointError(
                f"{which} in {self.directory} is of something else: {misfit}; "
                "use the config it was trained with, or another directory"
            )
        return good, without_step_count(tree, like)

    def last_good(self) -> int | None:
        """The newest step whose checkpoint is whole at this moment; None where there is none. Waits for nobody."""
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
            self._checkpointer.close()
            absl_logging.get_absl_logger().removeFilter(self._not_from_orbax)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if hosts.is_loss(error):
            # What all had written process 0 can seal yet. Any other save cannot end, but this process has to, by
            # `hosts.leave` and before the runtime does it.
            if self._pending is not None and hosts.is_first():
                wait_for([self._pending[1]], timeout=hosts.GRACE_SECONDS / 2)
            return
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            # What ended the run is the error to see.
            self._report(str(failure))

    def _claim(self) -> None:
        """Make the directory, and see that it can be written and is the same for all."""
        with ExitStack() as stack, self._barrier.together(seconds=_SECONDS):
            self.directory.mkdir(parents=True, exist_ok=True)
            own = stack.enter_context(tempfile.TemporaryDirectory(dir=self.directory, suffix=_UNFINISHED))
            first = self._barrier.wait(Path(own).name, seconds=_SECONDS)[0]
            if not (self.directory / first).exists():
                raise hosts.HostsError("it is another folder than that of process 0: use one that all hosts share")
        self._clear()

    def _clear(self) -> None:
        """Away with what killed or failed saves have left."""
        if hosts.is_first():
            for leftover in self.directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _open(self) -> tuple[ocp.StandardCheckpointHandler, ocp.AsyncCheckpointer]:
        count = jax.process_count()
        # Named, they meet through the coordination service, unnamed through the devices.
        processes = ocp.options.MultiprocessingOptions(active_processes=set(range(count)) if count > 1 else None)
        background = ocp.options.AsyncOptions(timeout_secs=_SECONDS, barrier_sync_fn=self._barrier)
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=processes)
        handlers = ocp.DefaultCheckpointHandlerRegistry()
        handlers.add(_ITEM, ocp.args.StandardSave, handler)
        options = ocp.CompositeOptions(multiprocessing_options=processes, async_options=background)
        composite = ocp.CompositeCheckpointHandler(handler_registry=handlers, composite_options=options)
        return handler, ocp.AsyncCheckpointer(composite, async_options=background, multiprocessing_options=processes)

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        """Orbax's, in its thread: unlike orbax's own it ends when another process has failed."""
        self._barrier.wait(seconds=-(-timeout_ms // 1000))

    def _seal(self, step: int) -> None:
        """In the background: wait for orbax's commit, write the manifest, delete older ones.

        Orbax calls `AsyncOptions.post_finalization_callback` before the commit, when files are
        still to be written; hence a thread of our own.
        """
        with self._barrier.together(seconds=_SECONDS):
            self._checkpointer.wait_until_finished()
            if hosts.is_first():
                write_manifest(self._folder(step))
                for old in self._steps()[: -self._keep]:
                    shutil.rmtree(self._folder(old))

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Turn what fails in here into a CheckpointError, and leave nothing of the step behind."""
        try:
            yield
        except Exception as error:
            self._barrier.give_up(error)
            self._barrier = Barrier("checkpoints")
            # What a failed save has left to raise is of no more use.
            with suppress(Exception):
                self._checkpointer.close()
            self._handler, self._checkpointer = self._open()
            if hosts.is_first() and damage(self._folder(step)) is not None:
                shutil.rmtree(self._folder(step), ignore_errors=True)
            self._clear()
            text = f"checkpoint {step} could not be saved in {self.directory}: {error}"
            # The text is all that orbax's and tensorstore's errors have in common.
            if any(full in str(error) for full in _FULL):
                text = f"the disk that holds {self.directory} is full: checkpoint {step} could not be saved"
            good = self.last_good()
            left = "there is no" if good is None else f"checkpoint {good} is the last"
            raise CheckpointError(f"{text}; {left} good one") from error

    def _set_damaged_aside(self) -> int | None:
        """The step of the newest whole checkpoint."""
        good, damaged = self._newest_good()
        used = "training starts from the beginning" if good is None else f"using checkpoint {good}"
        for old in self.directory.glob(f"*{_ASIDE}") if damaged else ():
            shutil.rmtree(old)
        for step, what in damaged.items():
            self._report(f"checkpoint {step} is {what}: {used}")
            os.replace(self._folder(step), self.directory / f"{step}{_ASIDE}")
        return good

    def _newest_good(self) -> tuple[int | None, dict[int, str]]:
        """The newest whole checkpoint, and what is wrong with each that is newer."""
        damaged: dict[int, str] = {}
        for step in reversed(self._steps()):
            what = damage(self._folder(step))
            if what is None:
                return step, damaged
            damaged[step] = what
        return None, damaged

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

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
