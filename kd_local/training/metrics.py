"""Metrics of single steps, and their means over an epoch."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kd_local.contract import Metrics
from kd_local.parallel import MetricsOfSteps, StepPlan, move, on_every_device
from kd_local.training.finite import metric_not_finite
from kd_local.training.records import ProgramMetrics, StepRecord


@partial(jax.jit, donate_argnums=0)
def _accumulate(
    sums: Float[Array, " metrics"], metrics: Mapping[str, Metrics | MetricsOfSteps], size: Float[Array, ""]
) -> tuple[Float[Array, " metrics"], Float[Array, "steps metrics"]]:
    values = jnp.stack([value.astype(jnp.float32) for of in metrics.values() for value in of.values()], axis=-1)
    # In the order of the steps, so that the sums do not depend on how steps are grouped into calls.
    each = values.reshape(-1, values.shape[-1])
    sums, _ = jax.lax.scan(lambda sums, of_step: (sums + size * of_step, None), sums, each)
    return sums, each


class EpochMetrics:
    """The metrics of steps, and their sums over the epoch.

    The host reads the metrics of a call, a step or several, n calls later, where n is the number of groups of devices.
    Until then they stay on the devices of their programs, so that no group of devices waits for another.

    Args:
        plan: the plan of the step.
        on_step: receives the record of each step once its metrics are read.
    """

    def __init__(self, plan: StepPlan, on_step: Callable[[StepRecord], None]) -> None:
        self.names = plan.metrics
        self._on_step = on_step
        self._unread: deque[tuple[int, list[Array]]] = deque()
        self._replicated = [on_every_device(group) for group in plan.groups]
        self._programs = plan.programs
        self._step = 0
        self.reset()

    @property
    def sums(self) -> Float[Array, " metrics"]:
        """The sums for a checkpoint: in the order of the metrics' names, on the devices of the first group.

        Raises:
            NotFiniteError: a sum of finite metrics is above the greatest number of float32.
        """
        sums = dict(zip(self._order(), np.concatenate(jax.device_get(self._sums)), strict=True))
        for (program, metric), total in sums.items():
            if not math.isfinite(total):
                raise metric_not_finite(program, f"sum over the epoch's {metric}", total, self._step)
        return move(np.array([sums[name] for name in self.names], np.float32), self._replicated[0])

    def reset(self) -> None:
        """Begins an epoch."""
        self.resume(np.zeros(len(self.names), np.float32), 0)

    def resume(self, sums: Float[Array | np.ndarray, " metrics"], count: int) -> None:
        """Continues an epoch from its sums over `count` images."""
        known = dict(zip(self.names, jax.device_get(sums), strict=True))
        self._count = count
        self._sums = [
            move(np.array([known[name] for name in self._names_of(group)], np.float32), replicated)
            for group, replicated in enumerate(self._replicated)
        ]

    def add(self, step: int, metrics: Mapping[str, Metrics | MetricsOfSteps], size: int, steps: int = 1) -> None:
        """Adds the metrics of a call.

        Args:
            step: the last step of the call, from 1.
            metrics: scalars, or arrays of shape (steps,).
            size: images of each batch.
            steps: the steps of the call.

        Raises:
            NotFiniteError: a metric of an earlier call is not finite.
        """
        self._count += size * steps
        self._step = step
        values = []
        for group, programs in enumerate(self._programs):
            given = {name: metrics[name] for name in programs}
            weight = move(np.float32(size), self._replicated[group])
            self._sums[group], value = _accumulate(self._sums[group], given, weight)
            values.append(value)
        self._unread.append((step, values))
        while len(self._unread) > len(self._replicated):
            self._read(*self._unread.popleft())

    def settle(self) -> None:
        """Waits for the last steps and reads their metrics. Raises the errors of `add`."""
        while self._unread:
            self._read(*self._unread.popleft())

    def means(self) -> ProgramMetrics:
        """Means over the epoch's images so far; raises as `sums`."""
        return self._by_program([total / self._count for total in jax.device_get(self.sums).tolist()])

    def _by_program(self, values: Iterable[float]) -> ProgramMetrics:
        """Values in the order of `names`, by program and metric."""
        metrics: dict[str, dict[str, float]] = {}
        for (program, metric), value in zip(self.names, values, strict=True):
            metrics.setdefault(program, {})[metric] = value
        return metrics

    def _names_of(self, group: int) -> list[tuple[str, str]]:
        return [name for name in self.names if name[0] in self._programs[group]]

    def _order(self) -> list[tuple[str, str]]:
        return [name for group in range(len(self._programs)) for name in self._names_of(group)]

    def _read(self, step: int, values: list[Array]) -> None:
        numbers = np.concatenate(jax.device_get(values), axis=1).tolist()
        for number, of_step in enumerate(numbers, step - len(numbers) + 1):
            metrics = dict(zip(self._order(), of_step, strict=True))
            for program, metric in self.names:
                value = metrics[program, metric]
                if not math.isfinite(value):
                    raise metric_not_finite(program, metric, value, number)
            self._on_step(StepRecord(number, self._by_program(metrics[name] for name in self.names)))
