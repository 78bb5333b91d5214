"""The step of a run: augments a batch on the devices, and takes the method's compiled step."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, Int64, PRNGKeyArray, UInt8

from kd_local.contract import Method, Metrics, State
from kd_local.data import Augmentation, Data, HostShare, batch_indices
from kd_local.parallel import (
    CompiledStep,
    StepOptions,
    StepPlan,
    compile_step,
    extra_names,
    move,
    on_every_device,
    put_rows,
)
from kd_local.training.finite import check_finite
from kd_local.training.inputs import ExtraTensor, batch_inputs, keys, share_of
from kd_local.training.records import TrainingPlan


@dataclass(frozen=True)
class TrainingStep:
    """A step of a run, from uint8 images on the host to the next state.

    Attributes:
        augmentation: the augmentation of the training images.
        rng: the key of all steps, on every device of the first group.
        compiled: the compiled step for each batch size.
        extra: functions that return the extra tensors of the step, by name.
        share: the rows of a batch that this process loads.
    """

    augmentation: Augmentation
    rng: PRNGKeyArray
    compiled: Mapping[int, CompiledStep]
    extra: Mapping[str, ExtraTensor]
    share: HostShare

    @property
    def plan(self) -> StepPlan:
        """The plan of the step. Placement and names are equal for all batch sizes."""
        return next(iter(self.compiled.values())).plan

    def __call__(
        self,
        state: State,
        step: int,
        chosen: Int64[np.ndarray, " batch"],
        images: UInt8[np.ndarray, "rows h w c"],
        labels: Int[np.ndarray, " rows"],
    ) -> tuple[State, dict[str, Metrics]]:
        """`(state after the step, metrics by program)`.

        Args:
            state: the state before the step.
            step: the step, from 0.
            chosen: positions in the training set of all images of the batch.
            images: this process's rows of the batch.
            labels: labels of these rows.

        Raises:
            ValueError: an extra tensor is not finite.
        """
        size, rows, first_group = len(chosen), self.share.rows(len(chosen)), self.plan.groups[0]
        inputs, step_rng = batch_inputs(self.augmentation, first_group, self.rng, step, images, size)
        tensors = {name: tensor(step, chosen) for name, tensor in self.extra.items()}
        check_finite(tensors, of=f"the extra tensors of step {step + 1}")
        tensors = {name: array[rows] if array.ndim else array for name, array in tensors.items()}
        placed, tensors = put_rows((labels, tensors), first_group, size)
        return self.compiled[size](state, inputs, placed, step_rng, tensors)


def prepare_step(
    method: Method,
    data: Data,
    plan: TrainingPlan,
    *,
    seed: int,
    mesh: Mesh,
    options: StepOptions,
    extra: Mapping[str, ExtraTensor],
) -> tuple[TrainingStep, State]:
    """`(step, state)`: the compiled step of a run and a new state, on the devices of the mesh.

    Raises:
        ValueError: the new state, teachers included, is not finite; see `kd_local.parallel.plan_step` too.
    """
    rng, init_rng = keys(seed)
    shape, batch_size = data.train.shape, plan.batch_size
    state = method.init(init_rng, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    check_finite(state, of="the state before the first step")
    offered: dict[str, ExtraTensor] = {"indices": _int32, "epoch": partial(_epoch, plan.steps_per_epoch), **extra}
    read = {name: offered[name] for name in extra_names(method.programs()) if name in offered}
    first_batch = next(batch_indices(len(data.train), seed=seed, batch_size=batch_size))
    step = compile_step(
        method,
        jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        {name: tensor(*first_batch) for name, tensor in read.items()},
        state=state,
        mesh=mesh,
        options=options,
    )
    compiled = {batch_size: step}
    smallest = len(data.train) - (plan.steps_per_epoch - 1) * batch_size
    if smallest != batch_size and plan.last_step >= plan.steps_per_epoch:
        compiled[smallest] = step.for_batch(smallest)
    first_group = step.plan.groups[0]  # where a batch begins
    rng = move(rng, on_every_device(first_group))
    return TrainingStep(data.augmentation, rng, compiled, read, share_of(first_group)), step.place(state)


def _int32(step: int, chosen: np.ndarray) -> np.ndarray:
    return chosen.astype(np.int32)


def _epoch(steps_per_epoch: int, step: int, chosen: np.ndarray) -> np.ndarray:
    return np.asarray(step // steps_per_epoch + 1, np.float32)
