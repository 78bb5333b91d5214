"""Times the steps of a method on synthetic batches. The times of the modules can determine their placement."""

import time
from collections import deque
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.from_config.experiment import Experiment
from kd_local.memory import plan_for
from kd_local.parallel import (
    Timeline,
    Watch,
    balanced_placement,
    batch_shardings,
    compile_plan,
    groups,
    move,
    on_every_device,
    recorded,
    with_next,
)

_WARM_UP, _STEPS = 2, 5


class StepTimer:
    """A method's step on a mesh, with a synthetic batch that is copied from the host for each step.

    Raises:
        ValueError: see `kd_local.memory.plan_for`.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, batch: int) -> None:
        plan = plan_for(experiment.method, experiment.shape, batch, mesh, experiment.options)
        first, rng = plan.groups[0], jax.random.key(0)
        self._step = compile_plan(plan)
        self._batch = {name: np.ones(like.shape, like.dtype) for name, like in plan.batch.items()}
        self._batch["images"] = np.random.default_rng(0).standard_normal(plan.batch["images"].shape, np.float32)
        self._shardings = batch_shardings(self._batch, first, batch)
        like = jax.ShapeDtypeStruct((1, *experiment.shape), np.float32)
        self._state, self._rng = plan.place(experiment.method.init(rng, like)), move(rng, on_every_device(first))

    @property
    def tied(self) -> tuple[bool, ...]:
        """For each piece, whether it belongs to the group of the next one, see `kd_local.parallel.with_next`."""
        return with_next([call.piece for call in self._step.plan.calls])

    def run(self, steps: int, watch: Watch | None = None) -> float:
        """The seconds of `steps` steps, with n + 1 batches in flight for n groups of devices."""
        flying: deque[Any] = deque()
        start = time.perf_counter()
        for _ in range(steps):
            batch = move(self._batch, self._shardings)
            images, labels = batch.pop("images"), batch.pop("labels")
            self._state, metrics = self._step(self._state, images, labels, self._rng, batch, watch=watch)
            flying.append(metrics)
            if len(flying) > len(self._step.plan.groups):
                jax.block_until_ready(flying.popleft())
        jax.block_until_ready((self._state, *flying))
        return time.perf_counter() - start

    def record(self, steps: int) -> Timeline:
        """The timeline of `steps` steps."""
        return recorded(self._step.plan, lambda watch: self.run(steps, watch))

    def seconds_of_pieces(self, steps: int) -> list[float]:
        """The median time of each piece in `steps` steps, in order."""
        seconds = self.record(steps).seconds_of_pieces()
        return [seconds[call.piece.name] for call in self._step.plan.calls]


def placement(experiment: Experiment, config: ConfigDict) -> tuple[int, ...] | None:
    """The group of each module by measured time on the devices of the first group; None to balance multiply-adds.

    The results of a run do not depend on the placement.
    """
    stages = groups(experiment.mesh)
    if config.mesh.placement == "operations" or len(stages) == 1:
        return None
    timer = StepTimer(experiment, stages[0], config.batch_size)
    timer.run(_WARM_UP)
    return balanced_placement(timer.seconds_of_pieces(_STEPS), len(stages), timer.tied)
