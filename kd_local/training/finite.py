"""Whether all numbers of a training state are finite, looked at on the devices that hold them.

A finite loss does not show it: on the CPU, XLA computes `max(nan, 0)` within a fused reduction as 0
(https://github.com/openxla/xla/issues/21461), so that a ReLU before a pooling hides what is not finite behind it.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool

from kd_local.contract import State
from kd_local.parallel import DATA, StepPlan
from kd_local.quick_compilation import jit_quickly
from kd_local.training.records import SplitScores

CHECK_EVERY = 50
"""The state is checked after every step whose number is a multiple of this, at the end of every epoch, and before every
save. If a call has several steps, the state after its last step is checked. On two CPU cores a check takes 3.5 ms for a
ResNet-8 in 4 modules (batches of 64 digits), 0.2 % of the time of 50 steps. It takes 9.4 ms for a ResNet-32 in 16
modules (batches of 128 images of 32x32)."""

_KINDS = {"params": "parameters", "batch_stats": "statistics", "opt_state": "optimizer state", "handed": "gradients"}


class NotFiniteError(Exception):
    """A loss or a number of the state became infinite or not a number: the run diverged.

    Attributes:
        program: such as `module03`; of an evaluation the exit, or `the deployed network`.
        kind: `parameters`, `statistics`, `optimizer state`, or a metric such as `loss` and `test loss`.
        path: of the first such array in the program's part of the state; None for a metric.
        step: after which it was found.
        last_finite: the last step after which all of this kind were seen to be finite.
    """

    def __init__(self, text: str, *, program: str, kind: str, path: str | None, step: int, last_finite: int) -> None:
        super().__init__(text)
        self.program, self.kind, self.path, self.step, self.last_finite = program, kind, path, step, last_finite


@dataclass(frozen=True)
class Place:
    """An array of a state: its program, or the part that no program owns; its kind; its path."""

    program: str
    kind: str
    path: str

    def __str__(self) -> str:
        return f"the {self.kind} of {self.program} ({self.path})"


def check_finite(tree: Any, *, of: str) -> None:
    """Check that given variables, or a fresh state, are finite. Reads the arrays on the host.

    >>> check_finite({"params": {"head": {"bias": np.array([0.0, np.nan])}}}, of="teacher.npz")
    Traceback (most recent call last):
    ...
    ValueError: teacher.npz: params/head/bias is not finite (1 of its 2 numbers): give weights that are finite

    Args:
        tree: a pytree of arrays; integers and PRNG keys among them are always finite.
        of: what is checked, such as a file, for the message.

    Raises:
        ValueError: an array has a number that is infinite or not a number. The error names the first one.
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        if _may_be_infinite(leaf):
            wrong = int((~np.isfinite(jax.device_get(leaf))).sum())
            if wrong:
                raise ValueError(
                    f"{of}: {_name(path)} is not finite ({wrong:,} of its {leaf.size:,} numbers): give weights that "
                    "are finite"
                )


def metric_not_finite(program: str, metric: str, value: float, step: int) -> NotFiniteError:
    """The error for a metric after a step. The caller raises it."""
    text = f"the {metric} of {program} is {value} at step {step}"
    return NotFiniteError(text, program=program, kind=metric, path=None, step=step, last_finite=step - 1)


def check_scores(scores: Mapping[str, SplitScores], step: int) -> None:
    """Check the losses of an evaluation, by split.

    Raises:
        NotFiniteError: the loss of the deployed network or of an exit is not finite.
    """
    for split, of_split in scores.items():
        for name, own in {"the deployed network": of_split, **of_split.exits}.items():
            if not math.isfinite(own.loss):
                raise metric_not_finite(name, f"{split} loss", own.loss, step)


class StateCheck:
    """Looks at the state of a run, without waiting for the devices except where it says so.

    An answer has one boolean for each array. It is read like the metrics of its call: once as many calls follow as
    there are groups of devices. The programs of the step stay as they are. Of several processes all read the same
    answers after the same steps.

    Args:
        plan: of the step.
        state: where the step needs it, see `StepPlan.place`. Only structure and shardings matter.
    """

    def __init__(self, plan: StepPlan, state: State) -> None:
        self._in_flight = len(plan.groups)
        programs = [program for call in plan.calls for program in call.piece.programs]
        trained = [program.name for program in programs if program.trains]
        parts = {name: _Part.of(name, part) for name, part in state.items()}
        self._parts = {name: part for name, part in parts.items() if part is not None}
        # Parts that do not change are looked at once.
        self._changing = [name for name in trained if name in self._parts]
        # The call, its last step, and the answer.
        self._unread: deque[tuple[int, int, dict[str, Array]]] = deque()
        self._calls = self._finite = 0

    def begin(self, state: State, step: int) -> None:
        """Look at the whole state, teachers included, before the first step, and wait for the answer.

        Args:
            step: the steps done.

        Raises:
            ValueError: it is not finite.
        """
        found = self._found(self._look(state, list(self._parts)))
        if found:
            raise ValueError(f"the state after step {step} is not finite: {_listed(found)}")
        self._finite = step

    def after(self, step: int, state: State, steps: int = 1) -> None:
        """Look at the state after a call if its turn has come. Call it after every call, before the next one.

        Args:
            step: the last step of the call.
            state: the state after it.
            steps: the steps of the call.

        Raises:
            NotFiniteError: the state after this or an earlier call is not finite.
        """
        self._calls += 1
        if step // CHECK_EVERY > (step - steps) // CHECK_EVERY:
            self._unread.append((self._calls, step, self._look(state, self._changing)))
        while self._unread and self._unread[0][0] <= self._calls - self._in_flight:
            self._read(*self._unread.popleft()[1:])

    def settle(self, step: int, state: State) -> None:
        """Look at the state after a step, and wait for the answer; raises as `after`."""
        if self._finite < step and (not self._unread or self._unread[-1][1] < step):
            self._unread.append((self._calls, step, self._look(state, self._changing)))
        while self._unread:
            self._read(*self._unread.popleft()[1:])

    def _look(self, state: State, names: list[str]) -> dict[str, Array]:
        return {name: self._parts[name].finite(state[name]) for name in names}

    def _found(self, answers: Mapping[str, Array]) -> list[Place]:
        """The arrays that are not finite, parameters first."""
        found = [
            place
            for name, finite in jax.device_get(answers).items()
            for place, good in zip(self._parts[name].places, finite.tolist(), strict=True)
            if not good
        ]
        order = list(_KINDS.values())
        return sorted(found, key=lambda place: order.index(place.kind) if place.kind in order else len(order))

    def _read(self, step: int, answers: Mapping[str, Array]) -> None:
        found = self._found(answers)
        if found:
            first = found[0]
            raise NotFiniteError(
                f"the state is not finite after step {step}: {_listed(found)}; it was finite after step {self._finite}",
                program=first.program,
                kind=first.kind,
                path=first.path,
                step=step,
                last_finite=self._finite,
            )
        self._finite = step


@dataclass(frozen=True)
class _Part:
    """A part of the state as it is looked at.

    Attributes:
        places: of its arrays that may be infinite.
        mesh, specs: the devices of these arrays, and how each is divided among them.
    """

    places: tuple[Place, ...]
    mesh: Mesh
    specs: tuple[PartitionSpec, ...]

    @classmethod
    def of(cls, name: str, part: Any) -> "_Part | None":
        """None if no array of the part may be infinite."""
        leaves = [(path, leaf) for path, leaf in jax.tree.leaves_with_path(part) if _may_be_infinite(leaf)]
        if not leaves:
            return None
        places = tuple(Place(name, *_kind_and_path(path)) for path, _ in leaves)
        specs = tuple(leaf.sharding.spec for _, leaf in leaves)
        return cls(places, leaves[0][1].sharding.mesh, specs)

    def finite(self, part: Any) -> Bool[Array, " places"]:
        """Whether each array is finite; dispatched."""
        return _finite(self.mesh, self.specs, tuple(filter(_may_be_infinite, jax.tree.leaves(part))))


# Parts of equal structure, such as those of equal modules, share an executable.
@jit_quickly(static_argnums=(0, 1))
def _finite(mesh: Mesh, specs: tuple[PartitionSpec, ...], leaves: tuple[Array, ...]) -> Bool[Array, " leaves"]:
    """Whether each array is finite on every device that holds it or a part of it."""

    @partial(jax.shard_map, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec(), check_vma=False)
    def on_each_device(parts: tuple[Array, ...]) -> Bool[Array, " leaves"]:
        wrong = jnp.stack([~jnp.isfinite(part).all() for part in parts])
        return jax.lax.psum(wrong.astype(jnp.int32), DATA) == 0

    return on_each_device(leaves)


def _may_be_infinite(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _kind_and_path(path: tuple[Any, ...]) -> tuple[str, str]:
    kind = getattr(path[0], "key", None) if path else None
    return (_KINDS[kind], _name(path[1:])) if kind in _KINDS else ("state", _name(path))


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _listed(found: list[Place]) -> str:
    """The first place, the number of the others, and their programs."""
    first, *others = found
    if not others:
        return str(first)
    programs = ", ".join(dict.fromkeys(place.program for place in found))
    return f"{first} and {len(others)} more of its arrays, in {programs}"
