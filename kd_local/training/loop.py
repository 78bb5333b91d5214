"""The training loop, for any method and any data, with or without checkpoints.

The loop calls a method's compiled step for each batch, or for several batches at once, and does not know modules or
teachers. The order and augmentation
of images depend only on seed and step, and a checkpoint has the whole state of a step. Therefore a resumed run gives
the same numbers as an uninterrupted one.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import jax
import optax
from jax.sharding import Mesh

from kd_local.choices.steps import check_divides
from kd_local.contract import Method, State
from kd_local.costs import device_bytes
from kd_local.data import Data, steps_per_epoch
from kd_local.errors import check_type
from kd_local.parallel import DATA, NOTHING, StepOptions, device_mesh
from kd_local.ranges import Number
from kd_local.training.agreement import Agreement
from kd_local.training.calls import call_sizes, default_options, grouped
from kd_local.training.checkpoints import Checkpoints
from kd_local.training.data_wait import DataWait
from kd_local.training.evaluation import Evaluator
from kd_local.training.finite import StateCheck, check_scores
from kd_local.training.image_source import fit_on_devices
from kd_local.training.inputs import ExtraTensor
from kd_local.training.interruption import Interrupted, StopRequest
from kd_local.training.metrics import EpochMetrics
from kd_local.training.missing_records import missing_record
from kd_local.training.records import EpochRecord, Observer, StepRecord, TrainingPlan
from kd_local.training.saving import Saving, restore
from kd_local.training.schedules import RANGES
from kd_local.training.training_step import prepare_step

_STEPS = Number(1, 2**31 - 1, whole=True, note="None is no limit")
_SEED = Number(0, 2**32 - 1, whole=True)
_SECONDS = Number(0, 1e7)


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        state: the method's state after the last step.
        step: number of steps done, including those of earlier starts of the same run.
        records: records of the epochs that ended in this start; the last epoch may be incomplete.
        peak_bytes: predicted memory of a compiled step, or of a call of several, on one device.
        resident_bytes: the part of it that images on the device take.
        multiply_adds: those of a step, gradients included, over all devices.
        executables: the number of different executables of a step.
        compile_seconds: time that this start needed to compile the step, or to read it from the compilation cache.
    """

    state: State
    step: int
    records: list[EpochRecord]
    peak_bytes: int | None
    resident_bytes: int
    multiply_adds: int
    executables: int
    compile_seconds: float


def training_plan(examples: int, *, epochs: int, batch_size: int, steps: int | None, mesh: Mesh) -> TrainingPlan:
    """The plan of a run that starts at the beginning.

    Raises:
        ValueError: a number is out of range, or the batch size is not a multiple of the devices on the data axis.
    """
    RANGES["epochs"].check("epochs", epochs)
    if steps is not None:
        _STEPS.check("steps", steps)
    each = steps_per_epoch(examples, batch_size)
    check_divides(batch_size, mesh.shape[DATA])
    return TrainingPlan(0, min(epochs * each, steps or epochs * each), each, batch_size)


def train(
    method: Method,
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    steps: int | None = None,
    mesh: Mesh | None = None,
    options: StepOptions | None = None,
    on_devices: bool | None = None,
    schedule: optax.Schedule | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 10.0,
    observers: Sequence[Observer] = (),
    interruption: StopRequest | None = None,
    extra: Mapping[str, ExtraTensor] = NOTHING,
    recorded: Collection[int] | None = None,
) -> Result:
    """Trains a network with a method, from the newest checkpoint if there is one.

    >>> result = train(method, load("digits"), epochs=8, batch_size=64)  # doctest: +SKIP
    >>> result.records[-1].test.accuracy  # doctest: +SKIP

    Args:
        method: the method, with its network and optimizer.
        data: the data set.
        epochs: number of passes through the training images.
        batch_size: images per step, over all devices. The last, smaller batch of an epoch is used too.
        seed: the seed of initialisation, order and augmentation.
        steps: a limit on the number of steps; None: no limit.
        mesh: the devices over which each batch and the modules are divided, see `kd_local.parallel.device_mesh`; None:
            one device. The number of batches in flight is at most the number of groups of devices plus 1.
        options: how the step is compiled, divided and placed; None: several steps per call on accelerators, see
            `kd_local.training.calls.default_options`.
        on_devices: whether all images are held on the devices; None: on accelerators, if they fit, see
            `kd_local.training.image_source.fit_on_devices`.
        schedule: the learning rate of each step, only for the records; the optimizer has its own.
        checkpoints: where to save and to resume from; None: nothing is saved.
        checkpoint_seconds: the shortest time between two checkpoints; the end of a run is always saved.
        observers: receive the plan and the records.
        interruption: checked after every call of the devices; its `loses` is set.
        extra: functions that return the other extra tensors of the method's programs, by name; `indices` and `epoch`
            are provided.
        recorded: the steps for which earlier starts of the run have an epoch record. If the run resumes at the end of
            an epoch and that step is missing, the state is evaluated and the record is made again. None: no check.

    Raises:
        ValueError: an argument has another type or is out of range; see also `training_plan`, `prepare_step` and
            `kd_local.parallel.plan_step`; or a fresh state, teachers included, is not finite.
        CheckpointError: see `Checkpoints`; or a checkpoint that is not finite.
        NotFiniteError: the run diverged. A metric is looked at after every step, the state at the end of every epoch,
            before it is saved, and after every `CHECK_EVERY` steps, see `kd_local.training.finite`.
        Interrupted: the interruption received a signal; the state was saved.
    """
    check_type("method", method, Method, "use a method, such as EndToEnd(network, optimizer)")
    check_type("data", data, Data, "use data of load or from_arrays")
    _SEED.check("seed", seed)
    _SECONDS.check("checkpoint_seconds", checkpoint_seconds)
    mesh = device_mesh() if mesh is None else mesh
    plan = training_plan(len(data.train), epochs=epochs, batch_size=batch_size, steps=steps, mesh=mesh)
    if on_devices is None:
        on_devices = fit_on_devices(data, mesh)
    if options is None:
        options = default_options(plan, len(data.train) // batch_size, mesh, on_devices=on_devices)
    take_steps, state = prepare_step(
        method, data, plan, seed=seed, mesh=mesh, options=options, extra=extra, images_on_devices=on_devices
    )
    metrics = EpochMetrics(take_steps.plan, partial(_notify, observers))
    check = StateCheck(take_steps.plan, state)
    state, plan = restore(checkpoints, state, metrics, plan, check)
    evaluate = Evaluator(method, data, batch_size=batch_size, mesh=mesh, on_devices=on_devices)
    plan = replace(plan, peak_bytes=take_steps.peak_bytes + evaluate.resident_bytes)
    for observer in observers:
        observer.on_start(plan)

    again = missing_record(evaluate, state, plan, recorded, schedule=schedule)
    records: list[EpochRecord] = [] if again is None else [again]
    for observer in observers if again is not None else ():
        observer.on_epoch(records[0])
    agreement = Agreement(len(take_steps.plan.groups), options.steps_per_call)
    saving = Saving(checkpoints, checkpoint_seconds, interruption, agreement, check, first_step=plan.first_step)
    step, stop = max(plan.first_step, plan.last_step), None
    sizes = call_sizes(plan, len(data.train) // batch_size, options.steps_per_call)
    stream = take_steps.source.batches(seed=seed, batch_size=batch_size, start_step=plan.first_step)
    with jax.transfer_guard("disallow"), closing(stream), closing(DataWait()) as wait:
        started, images = time.monotonic(), 0
        for batches in wait.batches(grouped(stream, sizes)):
            step, size = batches[-1].step + 1, len(batches[-1].chosen)
            state, step_metrics = take_steps(state, batches)
            saving.taken(step)
            wait.dispatched(step_metrics[take_steps.plan.programs[0][-1]])
            metrics.add(step, step_metrics, size, len(batches))
            check.after(step, state, len(batches))
            images += size * len(batches)
            last, ended = step == plan.last_step, step % plan.steps_per_epoch == 0
            if ended or last:
                metrics.settle()
                check.settle(step, state)
                seconds = time.monotonic() - started
                scores = evaluate(state)
                check_scores(scores, step)
                with jax.transfer_guard("allow"):
                    learning_rate = None if schedule is None else float(schedule(step - 1))
                record = EpochRecord(
                    epoch=step / plan.steps_per_epoch,
                    step=step,
                    train=metrics.means(),
                    test=scores["test"],
                    validation=scores.get("validation"),
                    seconds=seconds,
                    images_per_second=images / seconds,
                    data_wait_seconds=wait.seconds,
                    learning_rate=learning_rate,
                )
                records.append(record)
                for observer in observers:
                    observer.on_epoch(record)
                if ended:
                    metrics.reset()
                started, images, wait.seconds = time.monotonic(), 0, 0.0
            stop = saving.after(step, state, metrics, last=last)
            if stop is not None:
                break
    if checkpoints is not None:
        checkpoints.wait()
    if stop is not None:
        raise Interrupted(stop, step)
    resident = device_bytes(take_steps.source.resident) + evaluate.resident_bytes
    return Result(
        state,
        step,
        records,
        plan.peak_bytes,
        resident,
        take_steps.plan.multiply_adds,
        take_steps.plan.executables,
        take_steps.compile_seconds,
    )


def _notify(observers: Sequence[Observer], record: StepRecord) -> None:
    for observer in observers:
        observer.on_step(record)
