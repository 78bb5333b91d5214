"""Steps on made-up batches, to time them: whole, and module by module, from which follows where modules should go."""

import time
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.factory import Experiment
from kd_local.memory import batch_shapes
from kd_local.parallel import (
    Step,
    Timeline,
    batch_shardings,
    contiguous,
    groups,
    move,
    on_every_device,
    recording,
)

_WARM_UP, _STEPS = 2, 5


class Rehearsal:
    """A method's step on a mesh, divided as the config says, with a batch that waits on the host.

    Raises:
        ValueError: see `Step` and `batch_shapes`.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, config: ConfigDict) -> None:
        batch = config.batch_size
        self.step = Step(experiment.method, mesh, shard=config.mesh.shard, batch_norm=config.mesh.batch_norm)
        first = self.step.groups[0]
        rng = jax.random.key(0)
        state = experiment.method.init(rng, jax.ShapeDtypeStruct((1, *experiment.shape), jnp.float32))
        random = np.random.default_rng(0)
        images, labels, extra = batch_shapes(self.step, experiment.shape, batch)
        numbers = {name: np.ones(like.shape, like.dtype) for name, like in extra.items()}
        self._batch = random.standard_normal(images.shape, np.float32), np.zeros(batch, np.int32), numbers
        self._shardings = batch_shardings(self._batch, first, batch)
        self.step.compile(state, images, labels, rng, extra)
        self._state, self._rng = self.step.place(state), move(rng, on_every_device(first))

    def run(self, steps: int) -> float:
        """The seconds that so many steps take, one batch more in flight than there are groups of devices."""
        flying: deque[Any] = deque()
        start = time.perf_counter()
        for _ in range(steps):
            images, labels, extra = move(self._batch, self._shardings)
            self._state, metrics = self.step(self._state, images, labels, self._rng, extra)
            flying.append(metrics)
            if len(flying) > len(self.step.groups):
                jax.block_until_ready(flying.popleft())
        jax.block_until_ready((self._state, *flying))
        return time.perf_counter() - start

    def record(self, steps: int) -> Timeline:
        """Which group worked on which of so many batches, when."""
        with recording(self.step) as timeline:
            self.run(steps)
        return timeline


def placement(experiment: Experiment, config: ConfigDict) -> tuple[int, ...] | None:
    """The group of each module by the time that it takes on the devices of the first group; None where multiply-adds
    decide. What a run gives does not depend on it."""
    stages = groups(experiment.mesh)
    if config.mesh.placement == "operations" or len(stages) == 1:
        return None
    rehearsal = Rehearsal(experiment, stages[0], config)
    rehearsal.run(_WARM_UP)
    seconds = rehearsal.record(_STEPS).seconds_of_pieces()
    return contiguous([seconds[piece.name] for piece in rehearsal.step.pieces], len(stages))
