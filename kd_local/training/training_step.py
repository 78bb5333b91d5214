"""The steps of a run: batches from the host or from images on the devices, augmented there, and the method's step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from kd_local.contract import STRONG_VIEW, Method, Metrics, State
from kd_local.costs import device_bytes
from kd_local.data import Augmentation, Data, batch_indices
from kd_local.data.randaugment import check_channels
from kd_local.memory import compiled_peak
from kd_local.parallel import (
    CompiledStep,
    ManySteps,
    MetricsOfSteps,
    StepOptions,
    StepPlan,
    batch_shardings,
    compile_many,
    compile_plan,
    extra_names,
    lower_many,
    move,
    on_every_device,
    over_the_batch,
    plan_step,
    put_rows,
    with_shardings,
)
from kd_local.training.calls import check_calls, takes_single_steps
from kd_local.training.finite import check_finite
from kd_local.training.image_source import HostBatch, ImageSource, OnDevices, Rows, image_source
from kd_local.training.inputs import ExtraTensor, augmented, keys, share_of, strong_view
from kd_local.training.records import TrainingPlan


@dataclass(frozen=True)
class BatchInputs:
    """The function from what the host gives for a step to the tensors of the step, see `kd_local.parallel.Inputs`.

    Attributes:
        augmentation: the augmentation of the training images.
        mesh: the devices of the batch.
        rows: returns the images and labels of the batch.
        strong: True if the step reads the strong view.
    """

    augmentation: Augmentation
    mesh: Mesh
    rows: Rows
    strong: bool

    def __call__(self, resident: Any, rng: PRNGKeyArray, given: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        images, labels = self.rows(self.mesh, resident, given["images"])
        batched = over_the_batch(self.mesh, len(labels))
        inputs, step_rng = augmented(self.augmentation, batched, images, rng, given["step"])
        tensors = {"images": inputs, "labels": labels, **given["extra"]}
        if self.strong:
            tensors[STRONG_VIEW] = strong_view(self.augmentation, batched, images, rng, given["step"])
        return tensors, step_rng


# At module level, so that runs with equal inputs share an executable.
@partial(jax.jit, static_argnums=0)
def _inputs(inputs: BatchInputs, resident: Any, rng: PRNGKeyArray, given: Mapping[str, Any]) -> tuple[Any, Any]:
    return inputs(resident, rng, given)


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """The steps of a run, from the batches of a call to the next state.

    Attributes:
        plan: the plan of a step with `batch_size` images. Placement and names are equal for all batch sizes.
        inputs: makes the tensors of a step.
        source: the source of the training images.
        rng: the key of all steps, on every device of the first group.
        extra: functions that return the extra tensors of the step, by name.
        many: several steps as one call; None: all calls have one step.
        single: a compiled step for each batch size. Others are compiled when they are needed.
        compile_seconds: time that the compilation of `many` and `single` took, or their reading from the compilation
            cache.
    """

    plan: StepPlan
    inputs: BatchInputs
    source: ImageSource
    rng: PRNGKeyArray
    extra: Mapping[str, ExtraTensor]
    many: ManySteps | None
    single: dict[int, CompiledStep]
    compile_seconds: float = 0.0

    @property
    def batch_size(self) -> int:
        """Images of a step, over all devices, but for the last step of an epoch."""
        return int(self.plan.batch["labels"].shape[0])

    @property
    def peak_bytes(self) -> int:
        """Predicted memory of one device in a call, images on the device included."""
        if self.many is not None:
            return compiled_peak(self.many)
        return compiled_peak(self.single[self.batch_size]) + device_bytes(self.source.resident)

    def __call__(
        self, state: State, batches: Sequence[HostBatch]
    ) -> tuple[State, Mapping[str, Metrics | MetricsOfSteps]]:
        """`(state after the steps, metrics by program)`. The metrics of several steps have a first axis of steps.

        Args:
            state: the state before the first step.
            batches: the batches of a call, see `kd_local.training.calls`.

        Raises:
            ValueError: an extra tensor is not finite.
        """
        size, stacked = len(batches[0].chosen), len(batches) > 1
        each = [self._given(batch) for batch in batches]
        given = jax.tree.map(lambda *arrays: np.stack(arrays), *each) if stacked else each[0]
        given = {
            "step": move(given["step"], on_every_device(self.inputs.mesh)),
            "images": self.source.put(given["images"], size, stacked=stacked),
            "extra": put_rows(given["extra"], self.inputs.mesh, size, stacked=stacked),
        }
        if stacked:
            assert self.many is not None  # calls have several steps only with it
            return self.many(state, self.source.resident, self.rng, given)
        tensors, step_rng = _inputs(self.inputs, self.source.resident, self.rng, given)
        images, labels = tensors.pop("images"), tensors.pop("labels")
        return self._single(size)(state, images, labels, step_rng, tensors)

    def _given(self, batch: HostBatch) -> dict[str, Any]:
        tensors = {name: tensor(batch.step, batch.chosen) for name, tensor in self.extra.items()}
        check_finite(tensors, of=f"the extra tensors of step {batch.step + 1}")
        rows = share_of(self.inputs.mesh).rows(len(batch.chosen))
        extra = {name: array[rows] if array.ndim else array for name, array in tensors.items()}
        return {"step": np.uint32(batch.step), "images": batch.given, "extra": extra}

    def _single(self, size: int) -> CompiledStep:
        if size not in self.single:
            self.single[size] = compile_plan(self.plan.for_batch(size))
        return self.single[size]


def prepare_step(
    method: Method,
    data: Data,
    plan: TrainingPlan,
    *,
    seed: int,
    mesh: Mesh,
    options: StepOptions,
    extra: Mapping[str, ExtraTensor],
    images_on_devices: bool = False,
) -> tuple[TrainingStep, State]:
    """`(step, state)`: the compiled step of a run and a new state, on the devices of the mesh.

    Raises:
        ValueError: the new state, teachers included, is not finite; `extra` has the strong view; see
            `kd_local.parallel.plan_step` and `image_source` too.
    """
    if STRONG_VIEW in extra:
        raise ValueError(f"extra has {STRONG_VIEW}, which is made from the images: use Augmentation(strong=...)")
    full_steps = len(data.train) // plan.batch_size
    check_calls(plan, full_steps, options.steps_per_call)
    rng, init_rng = keys(seed)
    shape, batch_size = data.train.shape, plan.batch_size
    state = method.init(init_rng, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    check_finite(state, of="the state before the first step")
    offered: dict[str, ExtraTensor] = {"indices": _int32, "epoch": partial(_epoch, plan.steps_per_epoch), **extra}
    read = {name: offered[name] for name in extra_names(method.programs()) if name in offered}
    first_batch = next(batch_indices(len(data.train), seed=seed, batch_size=batch_size))
    of_step = plan_step(
        method,
        jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        {name: tensor(*first_batch) for name, tensor in read.items()},
        state=state,
        mesh=mesh,
        options=options,
    )
    first_group = of_step.groups[0]  # where a batch begins
    source = image_source(data.train, first_group, share_of(first_group), on_devices=images_on_devices)
    inputs = _inputs_of(of_step, data.augmentation, source)
    started = time.perf_counter()
    step = TrainingStep(of_step, inputs, source, move(rng, on_every_device(first_group)), read, None, {})
    if options.steps_per_call > 1:
        given = _shapes_of_call(of_step, source, options.steps_per_call)
        step = replace(step, many=compile_many(of_step, inputs, source.resident, step.rng, given))
    if takes_single_steps(plan, full_steps, options.steps_per_call):
        step.single[batch_size] = compile_plan(of_step)
    smallest = len(data.train) - (plan.steps_per_epoch - 1) * batch_size
    if smallest != batch_size and plan.last_step >= plan.steps_per_epoch:
        whole = step.single.get(batch_size)
        step.single[smallest] = (
            compile_plan(of_step.for_batch(smallest)) if whole is None else whole.for_batch(smallest)
        )
    return replace(step, compile_seconds=time.perf_counter() - started), of_step.place(state)


def lower_call(plan: StepPlan, augmentation: Augmentation, examples: int) -> Any:
    """A `jax.stages.Lowered` of a call of `plan.options.steps_per_call` steps whose devices hold the training images.

    Nothing is on the devices, which may be absent.

    Args:
        plan: a step of the form `joined`.
        augmentation: the augmentation of the training images.
        examples: number of training images.
    """
    mesh, shape = plan.groups[0], plan.batch["images"].shape[1:]
    source = OnDevices.shaped(examples, shape, mesh)
    inputs = _inputs_of(plan, augmentation, source)
    given = _shapes_of_call(plan, source, plan.options.steps_per_call)
    return lower_many(plan, inputs, source.resident, plan.rng, given)


def _inputs_of(plan: StepPlan, augmentation: Augmentation, source: ImageSource) -> BatchInputs:
    """The inputs of a planned step.

    Raises:
        ValueError: the step reads the strong view, and the images are neither grey nor RGB.
    """
    strong = STRONG_VIEW in plan.batch
    if strong:
        check_channels(plan.batch["images"].shape[-1])
    return BatchInputs(augmentation, plan.groups[0], source.rows, strong)


def _shapes_of_call(plan: StepPlan, source: ImageSource, steps: int) -> dict[str, Any]:
    """Shapes and shardings of what the host gives for a call of several steps."""
    mesh, size = plan.groups[0], int(plan.batch["labels"].shape[0])
    extra = {
        name: jax.ShapeDtypeStruct((steps, *like.shape), like.dtype)
        for name, like in plan.batch.items()
        if name not in ("images", "labels", STRONG_VIEW)
    }
    return {
        "step": jax.ShapeDtypeStruct((steps,), np.uint32, sharding=on_every_device(mesh)),
        "images": source.shapes(size, steps),
        "extra": with_shardings(extra, batch_shardings(extra, mesh, size, stacked=True)),
    }


def _int32(step: int, chosen: np.ndarray) -> np.ndarray:
    return chosen.astype(np.int32)


def _epoch(steps_per_epoch: int, step: int, chosen: np.ndarray) -> np.ndarray:
    return np.asarray(step // steps_per_epoch + 1, np.float32)
