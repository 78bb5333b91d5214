"""Trains the network of a config, in one process or several."""

import errno
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict
from rich.console import Console

from experiments.command_line import USAGE_STATUS, described, fail
from experiments.configs.contradictions import remarks
from experiments.ending import ENDING
from experiments.folders import workdirs
from experiments.folders.compilation_cache import VARIABLE
from experiments.folders.folder_lock import lock_folder
from experiments.folders.identity import NOTED, Identity, options
from experiments.folders.starts import StartRecord
from experiments.from_config.deployed_runs import save_state
from experiments.from_config.experiment import Experiment, build
from experiments.from_config.facts import facts_of_run
from experiments.from_config.planning import PLAN, left_to_measurement, planned
from experiments.from_config.scheduled_epoch import scheduled_epoch
from experiments.from_config.step_options import call_options
from experiments.from_config.step_timer import placement
from experiments.from_config.weights import save_network
from experiments.tables import say
from experiments.train.processes import agree, shared_options
from experiments.train.results import compared_with_teachers, show, title_of, write_results
from experiments.train.summary import costs_of_step
from experiments.train.teacher_caches import FillingStopped, cached_logits, caches
from kd_local.contract import TrainsNetwork
from kd_local.data import Data, DataError
from kd_local.parallel import hosts
from kd_local.parallel.barriers import Barrier
from kd_local.training.checkpoints import CheckpointError, Checkpoints
from kd_local.training.evaluation import gather
from kd_local.training.finite import NotFiniteError
from kd_local.training.interruption import Interrupted
from kd_local.training.logging import METRICS, STEPS, Log, read_epochs
from kd_local.training.loop import Result, train
from kd_local.training.progress import ProgressBar
from kd_local.training.teacher_cache import CacheError, TeacherCache

_BARRIER_SECONDS = 600  # how long the other processes wait for process 0
_READ_SECONDS = 1.5
_END_SECONDS = 30  # how long a process that has printed why all end waits for the others


@dataclass(frozen=True)
class Processes:
    """The processes that train together; a value is None if the cluster manager gives it."""

    coordinator: str | None
    processes: int | None
    index: int | None


def run(config: ConfigDict, folder: Path | None, group: Processes | None) -> None:
    """Trains the network of a config, and ends the program if that fails.

    Args:
        config: a config that `experiments.configs.contradictions` accepts.
        folder: the folder of the run; None: the default.
        group: the processes to connect to; None: this one trains alone.
    """
    try:
        config, experiment, data, cached, workdir, identity = _prepare(config, folder, group)
    except (ValueError, OSError, ModuleNotFoundError, hosts.HostsError) as error:
        if jax.process_count() > 1 and hosts.is_first():
            time.sleep(_READ_SECONDS)  # this process serves the messages: the others read why it ends
        _end(error, USAGE_STATUS)

    first = hosts.is_first()
    console = Console(quiet=not first)
    _describe(console, experiment, config, workdir)
    log = Log(workdir, report=_report) if first else None
    checkpoints = None

    def good() -> str:
        try:
            newest = checkpoints.last_good() if checkpoints is not None else None
        except CheckpointError as error:
            return str(error)
        return f"checkpoint {newest} in {workdir} is the last good one" if newest else "no checkpoint was saved before"

    def lost() -> str:
        ENDING.clean()
        return f"{hosts.lost()}; {good()}: the same command resumes from there"

    hosts.on_abort(lost)
    try:
        with Checkpoints(
            workdir / workdirs.CHECKPOINTS,
            keep=config.checkpoint.keep,
            run=identity.binding,
            records=(workdir / METRICS, workdir / STEPS),
            report=_report,
        ) as checkpoints:
            result = _train(config, experiment, data, cached, console, log, workdir, checkpoints)
        state = gather(result.state, experiment.mesh)
        compared = compared_with_teachers(experiment, config, state, data)
        if first:
            if isinstance(experiment.method, TrainsNetwork):
                variables = experiment.method.network_variables(state)
                if variables is not None:
                    save_network(variables, workdir)
            save_state(experiment.method, state, experiment.shape, workdir)
            costs = costs_of_step(experiment, config.batch_size, result, workdir)
            show(console, write_results(experiment, config, state, compared, costs, workdir), workdir)
    except Exception as error:
        _end_after(error, workdir, good())
    finally:
        if log is not None:
            log.close()


def _prepare(
    config: ConfigDict, folder: Path | None, group: Processes | None
) -> tuple[ConfigDict, Experiment, Data, dict[str, TeacherCache], Path, Identity]:
    """Everything that is needed before training: config, experiment, data, caches, the run's folder and identity."""
    workdir = workdirs.default_workdir(config) if folder is None else folder
    if group is not None:
        _join(config, group)
    agree(shared_options(config), seconds=_BARRIER_SECONDS)
    with Barrier("preparation").together(seconds=_BARRIER_SECONDS):
        experiment = build(config)
        data = experiment.read()
        facts = facts_of_run(config, experiment.method, data)
        cached = caches(experiment, config, data)
    agree(facts, seconds=_BARRIER_SECONDS, free=NOTED)
    identity = Identity(options(config), facts)
    notes = Barrier("workdir").decide(
        lambda: _claim(workdir, config, facts, experiment.plan.last_step), seconds=_BARRIER_SECONDS
    )
    ENDING.arm()
    ENDING.left = f"the same command resumes in {workdir}"
    for note in (*(f"{workdir}: {note}" for note in notes), *remarks(config)) if hosts.is_first() else ():
        print(f"note: {note}", file=sys.stderr)
    if left_to_measurement(config):
        if jax.process_count() > 1 and not (workdir / PLAN).exists():
            raise ValueError(
                f"balanced boundaries and memory budgets are found by a single process: start this run once without "
                f"--distributed, or copy {PLAN} of another run to {workdir}"
            )
        config = planned(config, workdir)
        experiment = build(config)
    return config, experiment, data, cached, workdir, identity


def _claim(workdir: Path, config: ConfigDict, facts: Mapping[str, Any], last_step: int) -> tuple[str, ...]:
    ENDING.at_end(lock_folder(workdir).release)
    return workdirs.claim(workdir, config, facts, last_step)


def _train(
    config: ConfigDict,
    experiment: Experiment,
    data: Data,
    cached: Mapping[str, TeacherCache],
    console: Console,
    log: Log | None,
    workdir: Path,
    checkpoints: Checkpoints,
) -> Result:
    extra = {**cached_logits(cached, console, ENDING), **scheduled_epoch(config, experiment.plan)}
    recorded = Barrier("records").decide(
        lambda: [record.step for record in read_epochs(workdir)], seconds=_BARRIER_SECONDS
    )
    of_step, on_devices = call_options(config, experiment.options, data, experiment.plan, experiment.mesh)
    with ProgressBar(console, experiment.method) as bar:
        return train(
            experiment.method,
            data,
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=config.seed,
            steps=config.steps,
            mesh=experiment.mesh,
            options=replace(of_step, placement=placement(experiment, config)),
            on_devices=on_devices,
            schedule=experiment.schedule,
            checkpoints=checkpoints,
            checkpoint_seconds=config.checkpoint.seconds,
            observers=() if log is None else (bar, log, StartRecord(workdir, "experiments.train")),
            interruption=ENDING,
            extra=extra,
            recorded=recorded,
        )


def _end_after(error: Exception, workdir: Path, good: str) -> NoReturn:
    """Ends with a message if the user can act on the error; raises any other error."""
    resumes = f"{good}: the same command resumes from there"
    match error:
        case Interrupted():
            ENDING.end(f"{error}; saved in {workdir}: the same command resumes from there", 128 + error.signal)
        case FillingStopped():
            _end(error, 128 + error.number)
        case NotFiniteError():
            _end(f"{error}; {good}; a lower --config.optimizer.learning_rate may help", 1, together=True)
        case _ if hosts.is_loss(error):
            _end(f"{hosts.lost()}; {resumes}", 1)
        case CheckpointError() | CacheError() | hosts.HostsError():
            _end(error, 1)
        case DataError():
            _end(f"{error}; {good}: the same command resumes once that is fixed", 1)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            _end(f"the disk that holds {workdir} is full; the same command resumes once there is room", 1)
        case OSError(filename=str(name)) if Path(name).absolute().is_relative_to(workdir.absolute()):
            _end(f"{name} cannot be used ({error.strerror}); {resumes} once that is mended", 1)
    if jax.process_count() > 1:  # the processes would wait for each other
        traceback.print_exc()
        ENDING.clean()
        hosts.leave(1)
    raise error


def _join(config: ConfigDict, group: Processes) -> None:
    """Connects to the other processes."""
    hosts.start(
        group.coordinator,
        group.processes,
        group.index,
        heartbeat_seconds=config.distributed.heartbeat_seconds,
        start_seconds=config.distributed.start_seconds,
    )
    ENDING.arm()


def _end(message: object, status: int, *, together: bool = False) -> NoReturn:
    """Prints the error and ends the process. It does not wait for the other processes, which end by themselves. If all
    end for the same reason (`together`), it first waits a moment until the others have printed it too."""
    if jax.process_count() == 1:
        fail(message, status)
    print(f"error: {described(message)}", file=sys.stderr, flush=True)
    if together:
        with suppress(hosts.HostsError):
            Barrier("end").wait(seconds=_END_SECONDS)
            if hosts.is_first():  # without it, the runtime of the others reports a loss
                time.sleep(_READ_SECONDS)
    ENDING.clean()
    hosts.leave(status)


def _describe(console: Console, experiment: Experiment, config: ConfigDict, workdir: Path) -> None:
    cuts = f", cut after {', '.join(experiment.boundaries)}" if experiment.boundaries else ""
    devices = f"{experiment.mesh.size} x {jax.devices()[0].device_kind}"
    say(console, f"{title_of(experiment, config)}{cuts}\n{devices}, workdir: {workdir}")
    if VARIABLE in os.environ:
        say(console, f"compilation cache: {os.environ[VARIABLE]}")


def _report(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
