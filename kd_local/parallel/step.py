"""A compiled training step: the programs of a method in order, on one group of devices or on several."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import Method, Metrics, State, owner, subtree
from kd_local.parallel.mesh import batch_shardings, on_every_device
from kd_local.parallel.options import StepOptions
from kd_local.parallel.pieces import compile_lowered, free
from kd_local.parallel.plan import NOTHING, StepPlan, number_type, plan_step, select
from kd_local.parallel.transfer import move

Watch = Callable[[int, str, float, Sequence[Metrics]], None]
"""A function that is called after each piece is dispatched.

Its arguments are the piece's group and name, the time before the dispatch (`time.perf_counter`), and the metrics of the
piece's programs.
"""


@dataclass(frozen=True, eq=False)
class CompiledStep:
    """A method's training step, compiled for one batch size.

    Calling it returns the state after the step and each program's metrics. The parts of the state that programs own,
    and on accelerators the batch, are donated: they may not be used afterwards. To keep a state, copy it first:
    `jax.tree.map(jnp.copy, state)`.

    On a mesh of several groups of devices (`device_mesh`), each piece runs on the devices of its group, where its part
    of the state is. Calls return before the devices have finished, and no gradient flows back from a later module.
    Therefore, while a group works on one batch, the group before it works on the next. The results are the same as on
    one device.

    Attributes:
        plan: shapes, placement, and the names of programs and metrics.
        executables: a `jax.stages.Compiled` for each piece. Equal pieces of one group share an executable.
    """

    plan: StepPlan
    executables: tuple[Any, ...]
    _constants: tuple[tuple[Array, ...], ...]
    # Subtrees of parts that no program owns (teachers), by path and group: the subtree that was copied, and the copy.
    _copies: dict[tuple[str, int], tuple[Any, Any]]

    def __call__(
        self,
        state: State,
        images: Float[Array | np.ndarray, "batch h w c"],
        labels: Int[Array | np.ndarray, " batch"],
        rng: PRNGKeyArray,
        extra: Mapping[str, Any] = NOTHING,
        *,
        watch: Watch | None = None,
    ) -> tuple[State, dict[str, Metrics]]:
        """Takes one step.

        Args:
            state: the result of `method.init` or of an earlier step; on a mesh of several devices see `place`.
            images: a batch of the size that the step was compiled for, on the devices of the first group.
            labels: the labels of these images.
            rng: the key of this step.
            extra: the tensors of `plan.batch` besides images and labels, by name.
            watch: called after each piece is dispatched.

        Returns:
            The state after the step; the metrics of each program by its name.

        Raises:
            ValueError: a batch of another size, a missing tensor, or a state that was donated to an earlier step.
        """
        state, batch = dict(state), len(images)
        tensors = select({"images": images, "labels": labels, **extra}, tuple(self.plan.batch))
        for name, like in self.plan.batch.items():
            if np.shape(tensors[name]) != like.shape:
                raise ValueError(
                    f"{name} of shape {np.shape(tensors[name])}, but the step is compiled for {like.shape}: compile a "
                    "step for each batch size, such as step.for_batch(n)"
                )
        metrics: dict[str, Metrics] = {}
        at = 0
        for call, executable, constants, group in zip(
            self.plan.calls, self.executables, self._constants, self.plan.placement, strict=True
        ):
            piece = call.piece
            if group != at:
                at = group
                tensors = move(tensors, batch_shardings(tensors, call.mesh, batch))
                rng = move(rng, on_every_device(call.mesh))
            frozen = {path: self._copy(state, path, group) for path in piece.frozen}
            arguments = piece.arguments(state, frozen, tensors, rng, constants)
            dispatched = time.perf_counter()
            with donations_explained(piece.name):
                parts, written, values = executable(*arguments)
            del arguments, frozen
            if watch is not None:
                watch(group, piece.name, dispatched, values)
            for program, part, value in zip(piece.programs, parts, values, strict=True):
                state[program.name], metrics[program.name] = part, value
            free(tensors, piece)
            tensors.update(zip(piece.writes, written, strict=True))
        return state, metrics

    def place(self, state: State) -> State:
        """The state on the devices where the step needs it. Arrays that are already there are not copied."""
        return self.plan.place(state)

    def for_batch(self, size: int) -> "CompiledStep":
        """The same step with the same placement, compiled for another batch size, such as that of the last batch.

        Both steps share the copies of teachers on each group.
        """
        return _compile(self.plan.for_batch(size), self._copies)

    def _copy(self, state: State, path: str, group: int) -> Any:
        """A subtree of the state that programs only read, on each device of a group.

        A subtree of a part that no program owns is copied once.
        """
        part = subtree(state, path)
        owned = any(owner(path) in programs for programs in self.plan.programs)
        if len(self.plan.groups) == 1 and not (owned and self.plan.divides_parameters):
            return part
        known = self._copies.get((path, group))
        if known is None or known[0] is not part:
            known = (part, move(part, on_every_device(self.plan.groups[group])))
            if not owned:
                self._copies[path, group] = known
        return known[1]


@contextmanager
def donations_explained(name: str) -> Iterator[None]:
    """Raises a ValueError in place of JAX's error if arrays for `name` were donated to an earlier step."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "deleted" in str(error) or "donated" in str(error):
            raise ValueError(
                f"{name} got arrays that were donated to an earlier step: use the state that this step returned, or "
                "copy the state before the step, jax.tree.map(jnp.copy, state)"
            ) from error
        raise


def compile_step(
    method: Method,
    images: Any,
    labels: Any,
    extra: Mapping[str, Any] = NOTHING,
    *,
    state: State | None = None,
    mesh: Mesh | None = None,
    options: StepOptions = StepOptions(),
) -> CompiledStep:
    """Compiles a method's training step for the shapes of a batch. Arguments and errors are those of `plan_step`.

    >>> step = compile_step(method, images, labels)  # doctest: +SKIP
    >>> state, metrics = step(state, images, labels, rng)  # doctest: +SKIP
    """
    return compile_plan(plan_step(method, images, labels, extra, state=state, mesh=mesh, options=options))


def compile_plan(plan: StepPlan) -> CompiledStep:
    """Compiles a planned step."""
    return _compile(plan, {})


def _compile(plan: StepPlan, copies: dict[tuple[str, int], tuple[Any, Any]]) -> CompiledStep:
    executables: dict[Hashable, Any] = {}
    for call in plan.calls:
        # One after another: the CPU compiler uses all cores by itself. Executables that several threads compiled at the
        # same time ran a seventh slower (ResNet-32, K=16, R0), or two fifths slower with R1E.
        if call.signature not in executables:
            executables[call.signature] = compile_lowered(call.lower(), call.mesh)
    constants = tuple(
        tuple(
            move(np.asarray(program.constants, number_type()), on_every_device(call.mesh))
            for program in call.piece.programs
        )
        for call in plan.calls
    )
    return CompiledStep(plan, tuple(executables[call.signature] for call in plan.calls), constants, copies)
