"""The whole contract between a method and everything that runs, measures or places it.

A method describes one training step as a sequence of programs. The training loop runs them in order, `memory` lowers
them for any target and `parallel` places them on devices; none of the three knows a method by name.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, PRNGKeyArray

StatePart = Any
"""A pytree that one program owns: parameters, statistics and optimizer state."""

State = dict[str, StatePart]
"""Everything that a step depends on, by the name of the program that owns it, and the parts that are only read: what a
checkpoint holds."""

Metrics = dict[str, Float[Array, ""]]
"""Means over the batch, by name. Every program gives at least `loss`."""

Function = Callable[
    [StatePart, tuple[StatePart, ...], tuple[jax.Array, ...], PRNGKeyArray, Float[Array, " n"]],
    tuple[StatePart, tuple[jax.Array, ...], Metrics],
]
"""`(own part, frozen parts, tensors read, rng, constants) -> (own part, tensors written, metrics)`, pure."""


@dataclass(frozen=True)
class Program:
    """One compiled piece of a training step; of ContSup one a module, of most methods one in all.

    Attributes:
        name: such as `module03`; also the part of the state that the program owns and updates.
        key: programs with equal keys compute the same function and share one executable.
        function: see `Function`. Tensors are read and written in the order of `reads` and `writes`.
        reads: names of tensors handed on. `images` and `labels` come from the batch. So does any other tensor that no
            program writes: its leading dimension is the batch, or it is a scalar, which every device gets whole. The
            training loop offers `indices` (int32, the images' places in the training set) and `epoch` (float32 scalar,
            counted from 1).
        writes: names of tensors handed on to later programs.
        frozen: parts of the state that are only read (a teacher); they need not be owned by any program.
        constants: numbers handed to the function, such as the weights of a loss: programs that differ in nothing else
            share an executable.
        trains: False if the function returns its own part unchanged, as a frozen teacher's does.
    """

    name: str
    key: Hashable
    function: Function
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    constants: tuple[float, ...] = ()
    trains: bool = True


@runtime_checkable
class Method(Protocol):
    """A way to train a network."""

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> State:
        """A fresh state; of `images` only shape and dtype count."""
        ...

    def programs(self) -> tuple[Program, ...]:
        """One training step, in the order in which its programs run on one device."""
        ...

    def logits(self, state: State, images: Float[Array, "batch h w c"]) -> Float[Array, "batch k"]:
        """The logits of the deployed network, in evaluation mode: without local heads, connectors or teachers."""
        ...

    def exits(self, state: State, images: Float[Array, "batch h w c"]) -> Mapping[str, Float[Array, "batch k"]]:
        """The logits of other classifiers by name, in evaluation mode: local heads, their ensemble, stepping stones."""
        ...

    def deployed(self, state: State) -> Mapping[str, Any]:
        """The parameters that `logits` uses."""
        ...

    @property
    def deployed_program(self) -> str | None:
        """The program whose `accuracy` in training is that of `logits`; None if no program computes these logits."""
        ...


@runtime_checkable
class TrainsNetwork(Protocol):
    """A method that trains a network as it is, which can then be used without the method, as a teacher for one."""

    def network_variables(self, state: State) -> dict[str, Any] | None:
        """The network's variables, see `kd_local.networks.Network`; None where it cannot do without the method."""
        ...


@runtime_checkable
class HasTeachers(Method, Protocol):
    """A method with teachers."""

    def teacher_logits(
        self, state: State, images: Float[Array, "batch h w c"]
    ) -> Mapping[str, Float[Array, "batch k"]]:
        """The teachers' logits by name, in evaluation mode."""
        ...


def trained_programs(method: Method) -> tuple[str, ...]:
    """The names of the programs that train, in order: all but those of frozen teachers."""
    return tuple(program.name for program in method.programs() if program.trains)
