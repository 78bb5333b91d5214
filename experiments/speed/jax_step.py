"""The training step of a config, on synthetic images, as the training loop runs it."""

from dataclasses import replace
from itertools import islice
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.from_config.experiment import build
from experiments.from_config.images import describe_images
from experiments.speed.rows import JOINED, SCANNED
from kd_local.contract import Method
from kd_local.costs import multiply_adds
from kd_local.data import Augmentation, Data, Split, from_arrays
from kd_local.parallel import extra_names
from kd_local.training.inputs import ExtraTensor
from kd_local.training.loop import training_plan
from kd_local.training.training_step import prepare_step

_BATCHES = 8


class JaxStep:
    """The compiled step of a config.

    Args:
        config: a config; its teachers have zeros for weights.
        form: one of `experiments.speed.rows.FORMS`.
        steps: steps of a call of the form scanned.

    Attributes:
        scanned: whether a round is one call of several steps.
        predicted_bytes: predicted peak of one device; for `scanned`, with the training images on the device.
        multiply_adds: multiply-adds of a step's forward passes and gradients.
    """

    def __init__(self, config: ConfigDict, form: str, steps: int) -> None:
        experiment = build(config, fresh_teachers=True)
        self.scanned = scanned = form == SCANNED
        self._batch, self._steps = config.batch_size, steps
        data = synthetic(experiment.shape, config.batch_size, steps if scanned else _BATCHES)
        assert isinstance(data.train, Split)
        self._train = data.train
        of_run = training_plan(
            len(data.train), epochs=100_000, batch_size=self._batch, steps=None, mesh=experiment.mesh
        )
        options = replace(experiment.options, form=JOINED if scanned else form, steps_per_call=steps if scanned else 1)
        self._step, self._state = prepare_step(
            experiment.method,
            data,
            of_run,
            seed=0,
            mesh=experiment.mesh,
            options=options,
            extra=_cached(experiment.method, describe_images(config).classes),
            images_on_devices=scanned,
        )
        self.predicted_bytes = self._step.peak_bytes
        self._stream = self._step.source.batches(seed=0, batch_size=self._batch, start_step=0)
        self.multiply_adds = sum(multiply_adds(call.piece.run, *call.arguments) for call in self._step.plan.calls)

    def dispatch(self, steps: int) -> Any:
        """Starts n steps, or a call of the form scanned. Returns arrays that are ready when the steps are done."""
        batches = list(islice(self._stream, self._steps if self.scanned else steps))
        for call in [batches] if self.scanned else [[batch] for batch in batches]:
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


def _cached(method: Method, classes: int) -> dict[str, ExtraTensor]:
    """Zeros for the logits of the teachers of a method that reads them from a cache."""
    names = [name for name in extra_names(method.programs()) if name.endswith("_logits")]
    return dict.fromkeys(names, lambda step, chosen: np.zeros((len(chosen), classes), np.float32))


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
