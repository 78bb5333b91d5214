"""Several steps as one executable: `jax.lax.scan` over the joined step. The devices run them without the host.

On a GPU a step of a small network takes less time than the host needs to dispatch it. On a CPU a convolution inside a
loop is slow, and the host is no limit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.choices.steps import JOINED
from kd_local.contract import Metrics, State, subtree
from kd_local.parallel.mesh import on_every_device
from kd_local.parallel.pieces import Tensors, compile_lowered
from kd_local.parallel.plan import StepPlan, number_type
from kd_local.parallel.step import donations_explained
from kd_local.parallel.transfer import move

MetricsOfSteps = dict[str, Float[Array, " steps"]]
"""The metrics of a program by name, a number for each step."""

Inputs = Callable[[Any, PRNGKeyArray, Any], tuple[Tensors, PRNGKeyArray]]
"""A pure function: `(resident arrays, key of all steps, arrays of a step) -> (tensors of the batch, key of the step)`.

Resident arrays are on the devices for all steps, such as the training images. The tensors are those of
`StepPlan.batch`.
"""


@dataclass(frozen=True, eq=False)
class ManySteps:
    """Steps of a method that run as one call, compiled for one batch size and one number of steps.

    As in `CompiledStep`, the parts of the state that programs own are donated.

    Attributes:
        plan: the plan of one step, of the form `joined`.
        executable: a `jax.stages.Compiled`.
    """

    plan: StepPlan
    executable: Any
    _constants: tuple[Array, ...]

    def __call__(
        self, state: State, resident: Any, rng: PRNGKeyArray, given: Any
    ) -> tuple[State, dict[str, MetricsOfSteps]]:
        """`(state after the steps, metrics by program)`; each metric has the shape (steps,).

        Args:
            state: the state before the first of these steps, where the step needs it, see `StepPlan.place`.
            resident: the resident arrays of `Inputs`.
            rng: the key of all steps.
            given: the arrays of each step with a leading dimension of steps, on the devices.

        Raises:
            ValueError: a state that was donated to an earlier step.
        """
        owned = owned_parts(self.plan)
        read_only = {name: part for name, part in state.items() if name not in owned}
        own = {name: state[name] for name in owned}
        with donations_explained(owned[0]):
            parts, metrics = self.executable(own, read_only, resident, rng, given, self._constants)
        return {**read_only, **parts}, metrics


def owned_parts(plan: StepPlan) -> tuple[str, ...]:
    """The names of the parts of the state that the programs of a joined step own."""
    (call,) = plan.calls
    return tuple(program.name for program in call.piece.programs)


def lower_many(plan: StepPlan, inputs: Inputs, resident: Any, rng: Any, given: Any) -> Any:
    """A `jax.stages.Lowered` of several steps.

    Args:
        plan: a step of the form `joined` on one group of devices.
        inputs: makes the batch of a step.
        resident, rng, given: arrays or shapes with shardings; see `ManySteps`.

    Raises:
        ValueError: the step has another form, or several groups of devices.
    """
    if plan.options.form != JOINED or len(plan.groups) > 1:
        raise ValueError(
            f"several steps per call of the form {plan.options.form!r} on {len(plan.groups)} groups of devices: use "
            f"the form {JOINED!r} and one group (mesh.module=1)"
        )
    (call,) = plan.calls
    own = dict(zip(owned_parts(plan), call.own, strict=True))
    replicated = on_every_device(call.mesh)
    shardings = partial(jax.tree.map, lambda leaf: leaf.sharding)
    read_only = {name: part for name, part in plan.state.items() if name not in own}
    jitted = jax.jit(
        partial(_run, plan, inputs),
        in_shardings=(own, replicated, shardings(resident), replicated, shardings(given), replicated),
        out_shardings=(own, replicated),
        keep_unused=True,  # memory_analysis counts the arguments; pruned ones would be missing
        donate_argnums=0,
    )
    constants = tuple(jax.ShapeDtypeStruct((len(one.constants),), number_type()) for one in call.piece.programs)
    return jitted.lower({name: plan.state[name] for name in own}, read_only, resident, rng, given, constants)


def compile_many(plan: StepPlan, inputs: Inputs, resident: Any, rng: Any, given: Any) -> ManySteps:
    """Compiles several steps; see `lower_many`."""
    executable = compile_lowered(lower_many(plan, inputs, resident, rng, given), plan.mesh)
    (call,) = plan.calls
    replicated = on_every_device(call.mesh)
    constants = tuple(move(np.asarray(one.constants, number_type()), replicated) for one in call.piece.programs)
    return ManySteps(plan, executable, constants)


def _run(
    plan: StepPlan, inputs: Inputs, own: State, read_only: State, resident: Any, rng: Any, given: Any, constants: Any
) -> tuple[State, dict[str, MetricsOfSteps]]:
    (call,), owned = plan.calls, owned_parts(plan)

    def one(parts: State, of_step: Any) -> tuple[State, dict[str, Metrics]]:
        tensors, step_rng = inputs(resident, rng, of_step)
        frozen = {path: subtree(read_only, path) for path in call.piece.frozen}
        updated, _, metrics = call.function(*call.piece.arguments(parts, frozen, tensors, step_rng, constants))
        return dict(zip(owned, updated, strict=True)), dict(zip(owned, metrics, strict=True))

    return jax.lax.scan(one, own, given)
