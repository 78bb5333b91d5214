"""The contract between a method and the code that runs, measures or places it.

A method describes one training step as a sequence of programs. The training loop runs the programs in order, `memory`
lowers them for any target, and `parallel` places them on devices. None of the three knows a method by name.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, PRNGKeyArray

StatePart = Any
"""A part of the state, a pytree. A program's own part has its parameters, batch statistics and optimizer state."""

STRONG_VIEW = "images_strong"
"""The extra tensor with the strong view of a batch: the same images, further augmented."""

State = dict[str, StatePart]
"""All parts by name: the parts that programs own, and the parts that programs only read. A checkpoint stores them."""


def owner(path: str) -> str:
    """The name of the part of the state in a path.

    >>> owner("module03/params/blocks/0")
    'module03'
    """
    return path.split("/")[0]


def subtree(state: Mapping[str, Any], path: str) -> Any:
    """A part of the state, or a subtree of a part: keys of nested mappings with slashes between.

    >>> subtree({"module03": {"params": {"head": 1}}}, "module03/params/head")
    1
    """
    for key in path.split("/"):
        state = state[key]
    return state


Metrics = dict[str, Float[Array, ""]]
"""Scalars by name, each a mean over the batch. Every program that trains returns at least `loss`."""

Function = Callable[
    [StatePart, tuple[StatePart, ...], tuple[jax.Array, ...], PRNGKeyArray, Float[Array, " n"]],
    tuple[StatePart, tuple[jax.Array, ...], Metrics],
]
"""A pure function: `(own part, frozen parts, tensors read, rng, constants) -> (own part, tensors written, metrics)`.

The result has the part after the update. Example: module 1 of a cut ResNet-32 reads `features0` (batch, 32, 32, 16),
float32, and `labels` (batch,), int32. It writes `features1`.
"""


@dataclass(frozen=True)
class Program:
    """A part of a training step that is compiled by itself. ContSup has one program per module, most methods have one.

    Attributes:
        name: such as `module03`. It is also the name of the part of the state that the program owns and updates.
        key: programs with equal keys compute the same function and share one executable.
        function: see `Function`. Tensors are read and written in the order of `reads` and `writes`.
        reads: names of the tensors that the function reads. Earlier programs write them, or they are inputs of the
            step: `images`, `labels` and extra tensors. An extra tensor has the batch as its leading dimension, or is a
            scalar, which is copied to every device. The training loop provides the extra tensors `indices` (int32
            (batch,), positions in the training set), `epoch` (a float32 scalar, counted from 1) and `images_strong`
            (of the shape of `images`, see `kd_local.data.augment_strongly`).
        writes: names of the tensors that later programs read.
        frozen: paths of the parts of the state, or of subtrees of parts (see `subtree`), that the function only reads,
            such as a teacher. The function gets the values at the time when it runs: a later program of the step has
            not updated its part yet. No program needs to own such a part.
        constants: numbers passed to the function, such as the weights of a loss. Programs that differ only in their
            constants share one executable.
        trains: False if the program has no optimizer, as that of a frozen teacher or of a moving average. It then
            needs no `loss` among its metrics.
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
        """A new state. Only the shape and dtype of `images` matter."""
        ...

    def programs(self) -> tuple[Program, ...]:
        """The programs of one training step, in the order in which they run on one device."""
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
        """The name of the program whose `accuracy` is computed from `logits`; None if no program computes them."""
        ...


@runtime_checkable
class TrainsNetwork(Protocol):
    """A method that trains a whole, unmodified network. The network can be used without the method, as a teacher."""

    def network_variables(self, state: State) -> dict[str, Any] | None:
        """The variables of the `kd_local.networks.Network`; None if the trained network needs layers of the method."""
        ...


@runtime_checkable
class HasTeachers(Method, Protocol):
    """A method with teachers."""

    def teacher_logits(
        self, state: State, images: Float[Array, "batch h w c"]
    ) -> Mapping[str, Float[Array, "batch k"]]:
        """The logits of each teacher by its name, in evaluation mode."""
        ...


def trained_programs(method: Method) -> tuple[str, ...]:
    """The names of the programs that train, in order: all but those of frozen teachers."""
    return tuple(program.name for program in method.programs() if program.trains)
