"""The training loop: any method, any data, with or without files.

It runs a method's programs batch after batch and knows nothing of modules or teachers. Order and augmentation are a
function of seed and step alone, and what a checkpoint holds is all that a step depends on: a resumed run is the run
that was never stopped.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from kd_local.contract import Method, State
from kd_local.data import Data, batch_indices, steps_per_epoch
from kd_local.parallel import (
    DATA,
    NOTHING,
    StepOptions,
    compile_step,
    device_mesh,
    extra_names,
    move,
    on_every_device,
    put_rows,
)
from kd_local.training.agreement import SAVE, Agreement
from kd_local.training.checkpoints import Checkpoints
from kd_local.training.data_wait import DataWait
from kd_local.training.evaluation import evaluate
from kd_local.training.inputs import ExtraTensor, batch_inputs, keys, share_of
from kd_local.training.interruption import Interrupted, Interruption
from kd_local.training.metrics import EpochMetrics
from kd_local.training.records import EpochRecord, Observer, StepRecord, TrainingPlan


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    Attributes:
        state: the method's state after the last step.
        step: steps done, including those of earlier starts of the same run.
        records: of the epochs that this start has ended, the last one possibly incomplete.
    """

    state: State
    step: int
    records: list[EpochRecord]


def training_plan(examples: int, *, epochs: int, batch_size: int, steps: int | None, mesh: Mesh) -> TrainingPlan:
    """The plan of a run that starts at the beginning.

    Raises:
        ValueError: a number out of range, or a batch that the mesh does not divide.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}: use 1 or more")
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}: use 1 or more, or None for no limit")
    each = steps_per_epoch(examples, batch_size)
    devices = mesh.shape[DATA]
    if batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} cannot be divided among {devices} devices: use a multiple of {devices}, "
            f"such as {-(-batch_size // devices) * devices}"
        )
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
    options: StepOptions = StepOptions(),
    schedule: optax.Schedule | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 10.0,
    observers: Sequence[Observer] = (),
    interruption: Interruption | None = None,
    extra: Mapping[str, ExtraTensor] = NOTHING,
) -> Result:
    """Train a method on data, from the newest checkpoint if there is one.

    Args:
        method: what to train.
        data: what to train it on.
        epochs: passes through the training images.
        batch_size: over all devices; the last, smaller batch of an epoch is kept.
        seed: of initialisation, order and augmentation.
        steps: a limit on the steps, if any.
        mesh: of devices to divide each batch and the modules among, see `kd_local.parallel.device_mesh`; one device if
            None. At most a batch more than it has groups of devices is in flight.
        options: how the step is compiled, divided and placed.
        schedule: the learning rate that the method's optimizer was given, to be recorded.
        checkpoints: where to save; nowhere if None.
        checkpoint_seconds: at least so long between two checkpoints; the end of a run is always saved.
        observers: are told of each step and epoch.
        interruption: looked at after every step.
        extra: tensors that the method's programs read besides `images`, `labels`, `indices` and `epoch`, by name.

    Raises:
        ValueError: see `training_plan` and `kd_local.parallel.plan_step`.
        NotFiniteError: a loss is not finite; the state behind it was not saved.
        Interrupted: as the interruption asked; the state was saved.
    """
    mesh = device_mesh() if mesh is None else mesh
    plan = training_plan(len(data.train), epochs=epochs, batch_size=batch_size, steps=steps, mesh=mesh)
    last_step, each = plan.last_step, plan.steps_per_epoch
    rng, init_rng = keys(seed)
    shape = data.train.shape
    state = method.init(init_rng, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    offered: dict[str, ExtraTensor] = {"indices": _int32, "epoch": partial(_epoch, each), **extra}
    extra = {name: offered[name] for name in extra_names(method.programs()) if name in offered}
    first_batch = next(batch_indices(len(data.train), seed=seed, batch_size=batch_size))
    compiled = compile_step(
        method,
        jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        {name: tensor(*first_batch) for name, tensor in extra.items()},
        state=state,
        mesh=mesh,
        options=options,
    )
    smallest = len(data.train) - (each - 1) * batch_size if last_step >= each else batch_size
    steps_of_size = {batch_size: compiled}
    if smallest != batch_size:
        steps_of_size[smallest] = compiled.for_batch(smallest)
    groups = compiled.plan.groups
    first_group = groups[0]  # where a batch begins
    share = share_of(first_group)
    state, rng = compiled.place(state), move(rng, on_every_device(first_group))

    def on_step(record: StepRecord) -> None:
        for observer in observers:
            observer.on_step(record)

    metrics = EpochMetrics(compiled.plan, on_step)
    first_step = 0
    if checkpoints is not None:
        restored = checkpoints.restore_latest({"state": state, "sums": metrics.sums})
        if restored is not None:
            first_step, tree = restored
            state = tree["state"]
            metrics.resume(tree["sums"], first_step % each * batch_size)
    for observer in observers:
        observer.on_start(replace(plan, first_step=first_step))

    last_of_first_group = compiled.plan.programs[0][-1]
    agreement = Agreement(len(groups))
    result = Result(state, max(first_step, last_step), [])
    last_saved = started = time.monotonic()
    count = 0
    stop: int | None = None
    stream = data.train.training_batches(seed=seed, batch_size=batch_size, start_step=first_step, share=share)
    with jax.transfer_guard("disallow"), closing(stream), closing(DataWait()) as wait:
        for step, chosen, images, labels in wait.batches(islice(stream, last_step - first_step)):
            size, rows = len(chosen), share.rows(len(chosen))
            inputs, step_rng = batch_inputs(data.augmentation, first_group, rng, step, images, size)
            tensors = {name: tensor(step, chosen) for name, tensor in extra.items()}
            tensors = {name: array[rows] if array.ndim else array for name, array in tensors.items()}
            labels, tensors = put_rows((labels, tensors), first_group, size)
            state, step_metrics = steps_of_size[size](state, inputs, labels, step_rng, tensors)
            wait.dispatched(step_metrics[last_of_first_group])
            metrics.add(step + 1, step_metrics, size)
            count += size

            last, ended = step + 1 == last_step, (step + 1) % each == 0
            if ended or last:
                metrics.settle()
                seconds = time.monotonic() - started
                scores = evaluate(method, state, data, batch_size=batch_size, mesh=mesh)
                with jax.transfer_guard("allow"):
                    learning_rate = None if schedule is None else float(schedule(step))
                record = EpochRecord(
                    epoch=(step + 1) / each,
                    step=step + 1,
                    train=metrics.means(),
                    test=scores["test"],
                    validation=scores.get("validation"),
                    seconds=seconds,
                    images_per_second=count / seconds,
                    data_wait_seconds=wait.seconds,
                    learning_rate=learning_rate,
                )
                result.records.append(record)
                for observer in observers:
                    observer.on_epoch(record)
                if ended:
                    metrics.reset()
                started, count, wait.seconds = time.monotonic(), 0, 0.0

            due = checkpoints is not None and time.monotonic() - last_saved >= checkpoint_seconds
            wish = (interruption.received if interruption is not None else None) or (SAVE if due else 0)
            agreed = agreement.after(step + 1, wish)
            stop = agreed if agreed > SAVE else None
            if checkpoints is not None and (agreed or last):
                metrics.settle()
                with jax.transfer_guard("allow"):
                    checkpoints.save(step + 1, {"state": state, "sums": metrics.sums})
                last_saved = time.monotonic()
            if stop is not None:
                break
    if checkpoints is not None:
        checkpoints.wait()
    if stop is not None:
        raise Interrupted(stop, step + 1)
    return replace(result, state=state)


def _int32(step: int, chosen: np.ndarray) -> np.ndarray:
    return chosen.astype(np.int32)


def _epoch(steps_per_epoch: int, step: int, chosen: np.ndarray) -> np.ndarray:
    return np.asarray(step // steps_per_epoch + 1, np.float32)
