"""Caches the logits of a config's teachers in the folder `teacher.cache`, before training starts."""

from collections.abc import Mapping
from functools import partial
from signal import Signals

from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress, TaskID

from experiments.from_config.experiment import Experiment
from experiments.tables import say
from kd_local.data import Data, steps_per_epoch
from kd_local.distill import Distillation
from kd_local.parallel import device_mesh, groups, hosts
from kd_local.parallel.barriers import Barrier
from kd_local.paths import make_folder, read_folder
from kd_local.sizes import shown_bytes
from kd_local.training.inputs import ExtraTensor
from kd_local.training.interruption import StopRequest
from kd_local.training.loop import training_plan
from kd_local.training.teacher_cache import TeacherCache

_FILLING_SECONDS = 30 * 24 * 3600
"""How long the other processes wait while the first process computes the logits."""


class FillingStopped(Exception):
    """The signal `number` arrived while a cache was filled. The message has the number of rows that are complete."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def caches(experiment: Experiment, config: ConfigDict, data: Data) -> dict[str, TeacherCache]:
    """A cache for each view and teacher, by the name of its extra tensor; empty if the config sets no cache.

    Raises:
        ValueError: the folder cannot be used.
    """
    method = experiment.method
    if not isinstance(method, Distillation) or not method.cached:
        return {}
    folder = read_folder(config.teacher.cache, "teacher.cache")
    make_folder(folder, "teacher.cache")
    plan = training_plan(
        len(data.train), epochs=config.epochs, batch_size=config.batch_size, steps=config.steps, mesh=experiment.mesh
    )
    own = groups(experiment.mesh)[0].local_devices
    found = [
        TeacherCache(
            teacher.network,
            teacher.variables,
            data,
            folder=folder,
            batch_size=config.batch_size,
            steps=plan.last_step,
            seed=config.seed,
            mesh=device_mesh(len(own), devices=own),
            renormalisation=teacher.renormalisation,
            strong=strong,
        )
        for strong in ((False, True) if method.objective.needs_strong_view else (False,))
        for teacher in method.teachers
    ]
    return dict(zip(method.cached_tensors, found, strict=True))


def cached_logits(
    of: Mapping[str, TeacherCache], console: Console, interruption: StopRequest
) -> dict[str, ExtraTensor]:
    """The extra tensors of `train` with the teachers' logits. Missing logits are computed first.

    A terminal shows a progress bar. If there are several processes, the first computes the logits, and all read them.

    Raises:
        CacheError: see `TeacherCache.fill`.
        FillingStopped: the interruption received a signal.
        HostsError: another process failed or is lost.
    """
    found = {}
    filled = Barrier("teacher caches")
    for name, cache in of.items():
        say(console, f"{name}: {_size(cache)}, {cache.path}")
        with filled.together(seconds=_FILLING_SECONDS):
            if hosts.is_first():
                with Progress(console=console, disable=not console.is_terminal) as bar:
                    task = bar.add_task(f"caching {name}", total=None)
                    found[name] = cache.fill(
                        partial(_tell, bar, task, name, interruption),
                        partial(say, console, f"{name}: another run computes them, and this one waits for it"),
                    )
        if name not in found:
            found[name] = cache.fill()
    return found


def _tell(bar: Progress, task: TaskID, name: str, interruption: StopRequest, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
    interruption.loses = lambda: done < total  # not the rows, but the message that counts them
    if interruption.received is not None:
        raise FillingStopped(
            f"interrupted by {Signals(interruption.received).name} with {done:,} of {total:,} rows of {name} cached: "
            "the same command resumes from there",
            interruption.received,
        )


def _size(cache: TeacherCache) -> str:
    size, rows = shown_bytes(cache.size), cache.shape[0]
    if len(cache.shape) == 2:
        return f"{size} for {rows:,} images and any number of epochs"
    epochs = rows / steps_per_epoch(len(cache.data.train), cache.batch_size)
    return f"{size} for {epochs:g} epochs" if epochs >= 1 else f"{size} for {rows:,} steps"
