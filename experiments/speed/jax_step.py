"""The training step of a row in JAX, on synthetic images, as the training loop runs it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.from_config.experiment import build
from experiments.speed.rows import JOINED, SCANNED, SpeedRow, configured
from kd_local.contract import Metrics, State
from kd_local.costs import multiply_adds
from kd_local.data import Augmentation, Data, Split, augment, from_arrays
from kd_local.memory import compiled_peak
from kd_local.parallel import StepPlan, move, on_every_device, plan_step
from kd_local.parallel.plan import number_type
from kd_local.training.inputs import keys
from kd_local.training.loop import training_plan
from kd_local.training.training_step import prepare_step

_BATCHES = 8


class JaxStep:
    """The compiled step of a row.

    Attributes:
        predicted_bytes: predicted peak of one device; for `scanned`, with the training images on the device.
        multiply_adds: multiply-adds of a step's forward passes and gradients.
    """

    def __init__(self, row: SpeedRow, config: ConfigDict, steps: int) -> None:
        config = configured(row, config)
        experiment = build(config, fresh_teachers=True)
        self._batch, self._steps, self._number = config.batch_size, steps, 0
        data = synthetic(experiment.shape, config.batch_size)
        assert isinstance(data.train, Split)
        self._train = data.train
        self._scanned = None
        if row.form == SCANNED:
            images = jax.ShapeDtypeStruct((self._batch, *experiment.shape), np.float32)
            labels = jax.ShapeDtypeStruct((self._batch,), np.int32)
            options = replace(experiment.options, form=JOINED)
            plan = plan_step(experiment.method, images, labels, mesh=experiment.mesh, options=options)
            self._rng, init_rng = keys(0)
            self._state = plan.place(experiment.method.init(init_rng, images))
            self._on_device = jax.device_put((self._train.images, self._train.labels))
            self._scanned = (
                scanned(plan, data.augmentation)
                .lower(
                    self._state,
                    *self._on_device,
                    self._rng,
                    jax.ShapeDtypeStruct((steps,), np.uint32),
                    jax.ShapeDtypeStruct((steps, self._batch), np.int32),
                )
                .compile()
            )
            stats = self._scanned.memory_analysis()
            self.predicted_bytes = stats.argument_size_in_bytes + stats.temp_size_in_bytes
            self.predicted_bytes += stats.output_size_in_bytes - stats.alias_size_in_bytes
        else:
            examples = len(self._train)
            of_run = training_plan(examples, epochs=10**6, batch_size=self._batch, steps=None, mesh=experiment.mesh)
            options = replace(experiment.options, form=row.form)
            self._step, self._state = prepare_step(
                experiment.method, data, of_run, seed=0, mesh=experiment.mesh, options=options, extra={}
            )
            plan, self.predicted_bytes = self._step.plan, compiled_peak(self._step.compiled[self._batch])
        self.multiply_adds = sum(multiply_adds(call.piece.run, *call.arguments) for call in plan.calls)

    def dispatch(self) -> Any:
        """Starts all steps of a round. Returns arrays that are ready when the steps are done."""
        chosen = np.random.default_rng(self._number).integers(len(self._train), size=(self._steps, self._batch))
        first, self._number = self._number, self._number + self._steps
        if self._scanned is not None:
            numbers = np.arange(first, first + self._steps, dtype=np.uint32)
            self._state, metrics = self._scanned(
                self._state, *self._on_device, self._rng, numbers, chosen.astype(np.int32)
            )
            return self._state, metrics
        for i, rows in enumerate(chosen):
            images, labels = self._train.images[rows], self._train.labels[rows]
            self._state, metrics = self._step(self._state, first + i, rows, images, labels)
        return self._state, metrics

    @property
    def measured_bytes(self) -> int | None:
        """Peak memory of this process's device; None if the platform does not report it."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def synthetic(shape: tuple[int, int, int], batch: int) -> Data:
    """Random images with the augmentation of CIFAR-10, or of the digits if the images have one channel."""
    rng = np.random.default_rng(0)

    def split(examples: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(256, size=(examples, *shape), dtype=np.uint8), rng.integers(10, size=examples)

    channels = shape[-1]
    augmentation = Augmentation(
        padding="reflect",
        pad=min(4, shape[0] // 4),
        flip=channels == 3,
        mean=(127.5,) * channels,
        std=(64.0,) * channels,
    )
    return from_arrays(split(_BATCHES * batch), split(batch), classes=10, augmentation=augmentation)


def scanned(plan: StepPlan, augmentation: Augmentation) -> Any:
    """Many joined steps as one function to compile.

    The function takes `(state, images, labels, rng, steps, indices)` and returns the state after the steps and the
    metrics of each step. The results are those of `TrainingStep` for the same steps and indices.
    """
    (call,) = plan.calls
    piece = call.piece
    owned = [program.name for program in piece.programs]
    constants = tuple(
        move(np.asarray(program.constants, number_type()), on_every_device(call.mesh)) for program in piece.programs
    )

    def many(
        state: State, images: Any, labels: Any, rng: Any, steps: Any, indices: Any
    ) -> tuple[State, Mapping[str, Metrics]]:
        read_only = {name: part for name, part in state.items() if name not in owned}

        def one(own: State, at: Any) -> tuple[State, Mapping[str, Metrics]]:
            number, chosen = at
            step_rng, augment_rng = jax.random.split(jax.random.fold_in(rng, number))
            batch = augment(augmentation, images[chosen], augment_rng)
            offered = {"images": batch, "labels": labels[chosen], "indices": chosen, "epoch": jnp.float32(1)}
            tensors = {name: offered[name] for name in piece.reads}
            parts, _, values = piece.run(*piece.arguments({**read_only, **own}, tensors, step_rng, constants))
            return dict(zip(owned, parts, strict=True)), dict(zip(owned, values, strict=True))

        own, metrics = jax.lax.scan(one, {name: state[name] for name in owned}, (steps, indices))
        return {**read_only, **own}, metrics

    return jax.jit(many, donate_argnums=0)
