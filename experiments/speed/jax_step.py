"""The training step of a row in JAX, on synthetic images, as the training loop runs it."""

from dataclasses import replace
from itertools import islice
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.from_config.experiment import build
from experiments.speed.rows import JOINED, SCANNED, SpeedRow, configured
from kd_local.costs import multiply_adds
from kd_local.data import Augmentation, Data, Split, from_arrays
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
        scanned = row.form == SCANNED
        self._batch, self._steps = config.batch_size, steps
        data = synthetic(experiment.shape, config.batch_size, steps if scanned else _BATCHES)
        assert isinstance(data.train, Split)
        self._train = data.train
        of_run = training_plan(
            len(data.train), epochs=100_000, batch_size=self._batch, steps=None, mesh=experiment.mesh
        )
        form = {"form": JOINED, "steps_per_call": steps} if scanned else {"form": row.form}
        self._step, self._state = prepare_step(
            experiment.method,
            data,
            of_run,
            seed=0,
            mesh=experiment.mesh,
            options=replace(experiment.options, **form),
            extra={},
            images_on_devices=scanned,
        )
        self.predicted_bytes = self._step.peak_bytes
        self._stream = self._step.source.batches(seed=0, batch_size=self._batch, start_step=0)
        self.multiply_adds = sum(multiply_adds(call.piece.run, *call.arguments) for call in self._step.plan.calls)

    def dispatch(self, steps: int) -> Any:
        """Starts n steps, or a call of the form scanned. Returns arrays that are ready when the steps are done."""
        many = self._step.many is not None
        batches = list(islice(self._stream, self._steps if many else steps))
        for call in [batches] if many else [[batch] for batch in batches]:
            self._state, metrics = self._step(self._state, call)
        return self._state, metrics

    @property
    def codes(self) -> list[str]:
        """The HLO texts of the executables of the step."""
        step = self._step
        executables = [step.many.executable] if step.many is not None else set(step.single[self._batch].executables)
        return [executable.as_text() for executable in executables]

    @property
    def device(self) -> str:
        """The kind of the device."""
        return jax.devices()[0].device_kind

    @property
    def measured_bytes(self) -> int | None:
        """Peak memory of this process's device; None if the platform does not report it."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def synthetic(shape: tuple[int, int, int], batch: int, batches: int) -> Data:
    """Random images for n batches with the augmentation of CIFAR-10, or of the digits if they have one channel."""
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
    return from_arrays(split(batches * batch), split(batch), classes=10, augmentation=augmentation)
