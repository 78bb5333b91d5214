"""Crash-safe checkpoints of a run, in orbax's format.

A checkpoint is complete only if every file matches its digest in a manifest. The order of a save is: write, commit,
write the manifest, delete older checkpoints. Therefore a complete checkpoint remains whenever a process is killed. A
newer checkpoint that is damaged or unfinished is reported and moved aside, where it stays until this happens again. A
file that cannot be read is not damage: the error names it, and nothing is moved.

With several processes, each writes and reads its part of the arrays, in a folder that all hosts share. Process 0 writes
the manifest, deletes checkpoints, decides which checkpoint is used, and sends its decisions to the others. Processes
wait for each other through `Barrier` and orbax's barriers. These do not use the devices, because the background thread
that finishes a save must not interfere with the main thread's computations. An error in one process is raised in all.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, final

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from kd_local.orbax_messages import Quiet, reason
from kd_local.parallel import hosts
from kd_local.parallel.aborts import GRACE_SECONDS
from kd_local.parallel.barriers import Barrier
from kd_local.training.manifest import MANIFEST
from kd_local.training.older_checkpoints import with_step_count, without_step_count
from kd_local.training.step_folders import CheckpointError, StepFolders
from kd_local.training.stored_trees import check_storable, copied_if_on_host, misfit, stored, with_keys

__all__ = ["MANIFEST", "CheckpointError", "Checkpoints"]

_ITEM = "default"
_UNFINISHED = ocp.utils.TMP_DIR_SUFFIX
# The longest time that processes wait for another process to write, read or check its part of a checkpoint. A process
# that fails or is lost is noticed sooner, but orbax waits ten minutes for a folder that process 0 could not create.
_SECONDS = 1200
_warn = logging.getLogger(__name__).warning


@final
class Checkpoints:
    """The last few checkpoints of one run, in their own directory. A context manager.

    Every process creates one, and all call `save`, `wait`, `restore_latest` and `close` in the same order.

    Attributes:
        complete: the step of the last save that is complete; None before. Any thread may read it.

    Args:
        directory: gets a folder for each step. It is created if necessary, and all hosts share it.
        keep: number of checkpoints to keep.
        run: the facts that the run depends on, by name; JSON values. Each checkpoint has a copy of them. A checkpoint
            with other facts is refused.
        records: files that are flushed to the disk before a checkpoint is complete.
        report: called in process 0 with a sentence about each checkpoint that is damaged or unfinished.

    Raises:
        ValueError: `keep` is less than 1.
        CheckpointError: the directory cannot be created or written, or is not shared.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 3,
        run: Mapping[str, Any] | None = None,
        records: Sequence[Path] = (),
        report: Callable[[str], None] = _warn,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: use 1 or more")
        self.directory = directory.absolute()
        self._folders = StepFolders(self.directory, run, report)
        self._keep = keep
        self._records = records
        self._report = report
        self.complete: int | None = None
        self._pending: tuple[int, Future[None]] | None = None
        self._barrier = Barrier("checkpoints")
        try:
            self._claim()
        except (OSError, hosts.HostsError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(f"checkpoints cannot be kept in {directory}: {why}") from error
        self._quiet, self._failed = Quiet(), False
        self._handler, self._checkpointer = self._open()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")

    def save(self, step: int, tree: PyTree) -> None:
        """Copies a tree of arrays, and writes the copy in the background. Waits for the previous save first.

        The arrays may be donated as soon as this returns.

        Args:
            step: greater than the step of any checkpoint in the directory.
            tree: nested dicts, tuples and NamedTuples of arrays, PRNG keys among them, sharded or not. With several
                processes the arrays are on the devices of all of them.

        Raises:
            CheckpointError: the step is not greater, an array cannot be stored, or this save or the previous one
                failed.
        """
        self.wait()
        self._check_storable(tree)
        with self._saving(step):
            newest = self._barrier.decide(lambda: max(self._folders.steps(), default=None), seconds=_SECONDS)
        if newest is not None and newest >= step:
            raise CheckpointError(
                f"checkpoint {step} cannot be saved in {self.directory}, which already has checkpoint "
                f"{newest}: restore that checkpoint first, or use an empty directory"
            )
        with self._saving(step):
            args = ocp.args.StandardSave(jax.tree.map(copied_if_on_host, stored(tree)))
            self._checkpointer.save(self._folders.folder(step), args=ocp.args.Composite(**{_ITEM: args}))
            self._pending = (step, self._executor.submit(self._seal, step))

    def wait(self) -> None:
        """Waits until the last save is complete on the disk.

        Raises:
            CheckpointError: the save failed.
        """
        if self._pending is None:
            return
        step, future = self._pending
        wait_for([future])
        self._pending = None
        with self._saving(step):
            future.result()

    def restore_latest(self, like: PyTree) -> tuple[int, PyTree] | None:
        """`(step, tree)` of the newest undamaged checkpoint; None if there is none.

        The checkpoint may have been saved by another number of processes.

        Args:
            like: a tree of arrays, or of `jax.ShapeDtypeStruct`s with shardings, with the structure, shapes, dtypes and
                shardings of the result.

        Raises:
            CheckpointError: the checkpoint does not fit `like`, is of another run or step, or cannot be read; or all
                checkpoints are damaged; or no checkpoint could store `like`.
        """
        self.wait()
        self._check_storable(like)
        which, other, tree = "the newest checkpoint", None, None
        try:
            good = self._barrier.decide(self._folders.choose, seconds=_SECONDS)
            if good is None:
                return None
            which, item = f"checkpoint {good}", self._folders.folder(good) / _ITEM
            with self._barrier.together(seconds=_SECONDS):
                saved = self._handler.metadata(item).tree
                expected = with_step_count(stored(like), saved)
                other = misfit(saved, expected)
                if other is None:
                    tree = self._handler.restore(item, args=ocp.args.StandardRestore(expected))
        except CheckpointError:
            self._barrier = Barrier("checkpoints")
            raise
        except Exception as error:
            self._barrier = Barrier("checkpoints")
            raise CheckpointError(f"{which} in {self.directory} cannot be restored: {error}") from error
        if other is not None:
            raise CheckpointError(
                f"{which} in {self.directory} belongs to another run: {other}; "
                "use the config of that run, or another directory"
            )
        return good, with_keys(without_step_count(tree, like), like)

    def last_good(self) -> int | None:
        """The newest step whose checkpoint is complete; None if there is none. Does not wait for other processes.

        Raises:
            CheckpointError: a checkpoint cannot be read.
        """
        return self._folders.newest_good()[0]

    def close(self) -> None:
        """Waits for the last save, and ends all threads.

        Raises:
            CheckpointError: the last save failed.
        """
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self._checkpointer.close()
            self._quiet.end(failed=self._failed)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if hosts.is_loss(error):
            # Process 0 can still complete a save that all processes have written. No other save can finish, and this
            # process must end by `hosts.leave` before the runtime ends it.
            if self._pending is not None and hosts.is_first():
                wait_for([self._pending[1]], timeout=GRACE_SECONDS / 2)
            return
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            # The error that ended the run is raised instead.
            self._report(str(failure))

    def _check_storable(self, tree: PyTree) -> None:
        try:
            check_storable(tree)
        except TypeError as error:
            raise CheckpointError(f"checkpoints cannot be kept in {self.directory}: {error}") from None

    def _claim(self) -> None:
        """Creates the directory, and checks that it is writable and the same for all processes."""
        with ExitStack() as stack, self._barrier.together(seconds=_SECONDS):
            self.directory.mkdir(parents=True, exist_ok=True)
            own = stack.enter_context(tempfile.TemporaryDirectory(dir=self.directory, suffix=_UNFINISHED))
            first = self._barrier.wait(Path(own).name, seconds=_SECONDS)[0]
            if not (self.directory / first).exists():
                raise hosts.HostsError("it is not the same folder as in process 0: use a folder that all hosts share")
        self._clear()

    def _clear(self) -> None:
        """Deletes the remains of killed or failed saves."""
        if hosts.is_first():
            for leftover in self.directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _open(self) -> tuple[ocp.StandardCheckpointHandler, ocp.AsyncCheckpointer]:
        count = jax.process_count()
        # If processes have names, they wait for each other through the coordination service, not through the devices.
        processes = ocp.options.MultiprocessingOptions(active_processes=set(range(count)) if count > 1 else None)
        background = ocp.options.AsyncOptions(timeout_secs=_SECONDS, barrier_sync_fn=self._orbax_barrier)
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=processes)
        handlers = ocp.DefaultCheckpointHandlerRegistry()
        handlers.add(_ITEM, ocp.args.StandardSave, handler)
        options = ocp.CompositeOptions(multiprocessing_options=processes, async_options=background)
        composite = ocp.CompositeCheckpointHandler(handler_registry=handlers, composite_options=options)
        return handler, ocp.AsyncCheckpointer(composite, async_options=background, multiprocessing_options=processes)

    def _orbax_barrier(self, *, key: str, timeout_ms: int) -> None:
        """The barrier of orbax's thread. Unlike orbax's own barrier, it ends when another process has failed."""
        self._barrier.wait(seconds=-(-timeout_ms // 1000))

    def _seal(self, step: int) -> None:
        """Runs in the background: waits for orbax's commit, writes the manifest, deletes older checkpoints.

        It has its own thread, because orbax calls `AsyncOptions.post_finalization_callback` before the commit, when
        files are not yet written.
        """
        with self._barrier.together(seconds=_SECONDS):
            self._checkpointer.wait_until_finished()
            if hosts.is_first():
                self._folders.seal(step, self._records, keep=self._keep)
        self.complete = step

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Raises an error of the block as a CheckpointError, and deletes the files written for the step."""
        try:
            yield
        except Exception as error:
            self._barrier.give_up(error)
            self._barrier = Barrier("checkpoints")
            # A failed save may raise again when it is closed.
            with suppress(Exception):
                self._checkpointer.close()
            self._handler, self._checkpointer = self._open()
            if hosts.is_first():
                self._folders.remove_unsealed(step)
            self._clear()
            self._failed = True
            try:
                good = self.last_good()
                left = f"{'there is no' if good is None else f'checkpoint {good} is the last'} good one"
            except CheckpointError as unreadable:
                left = str(unreadable)
            raise CheckpointError(f"{reason(error, self.directory, step)}; {left}") from error
