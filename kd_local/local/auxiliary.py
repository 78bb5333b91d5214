"""The auxiliary network of a module: what the module's output passes through on its way to the local loss.

The methods of local learning that followed greedy learning differ in it. It is dropped after training. An
`AuxiliaryRule` makes the auxiliary network of each boundary. A new one is a file in `auxiliaries/` and a line in its
registry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import Program, StatePart
from kd_local.local.losses import LocalLoss
from kd_local.local.task_loss import TaskLoss
from kd_local.models.ends import Classifier
from kd_local.models.layers import DType
from kd_local.networks import Network


@runtime_checkable
class Apply(Protocol):
    """Applies one network of a module."""

    def __call__(self, name: str, network: nn.Module, *inputs: Any, params: Any = None) -> Array:
        """The output of a network; batch normalisation uses and updates the statistics of the module.

        Args:
            name: the network's name among the module's variables.
            network: the network.
            *inputs: its inputs: batches, or a pytree of frozen arrays.
            params: parameters that replace the module's own, such as a moving average.
        """
        ...


@runtime_checkable
class Auxiliary(Protocol):
    """The auxiliary network of one module.

    It is hashable. Modules with equal auxiliary networks share an executable, so an auxiliary network has no field for
    its position.
    """

    def init(self, rng: PRNGKeyArray, output: jax.ShapeDtypeStruct) -> Mapping[str, Mapping[str, Any]]:
        """New variables of each of its networks by name. The names differ from `blocks`, `context0`, `similarity`
        and `decoder`.

        Args:
            rng: a key.
            output: shape and dtype of the module's output.
        """
        ...

    def __call__(
        self, apply: Apply, output: Float[Array, "batch ..."], frozen: tuple[Any, ...]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch k"]]:
        """The features that a decoder reads, and the outputs that the local loss reads.

        Args:
            apply: applies a network that `init` has made.
            output: the module's output.
            frozen: the subtrees of the state that the `Attachment` names. No gradient flows to them.
        """
        ...


@runtime_checkable
class HasFeatures(Auxiliary, Protocol):
    """An auxiliary network whose features, which a decoder reads, differ in shape from the module's output."""

    def features(self, created: Mapping[str, Mapping[str, Any]], output: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the features.

        Args:
            created: the result of `init`.
            output: shape and dtype of the module's output.
        """
        ...


def module_name(number: int, modules: int) -> str:
    """The name of a module, which is also that of its program and of its part of the state.

    >>> module_name(3, 16)
    'module03'

    Args:
        number: the module's number, from 0.
        modules: the number of modules.
    """
    return f"module{number:0{max(2, len(str(modules - 1)))}d}"


@dataclass(frozen=True)
class Boundary:
    """A boundary of a cut network: what an auxiliary network may depend on.

    Attributes:
        network: the whole network.
        boundaries: the names of the blocks after which the network is cut.
        number: the boundary's number, from 0.
        head: a network from the module's output to `outputs` numbers; see `kd_local.local.heads`.
        outputs: outputs of the auxiliary network: the number of classes, or of features if the loss compares features.
        dtype: compute dtype.
    """

    network: Network
    boundaries: tuple[str, ...]
    number: int
    head: nn.Module
    outputs: int
    dtype: DType = None

    @property
    def end(self) -> int:
        """The number of blocks before the boundary."""
        return self.network.position(self.boundaries[self.number]) + 1

    @property
    def next_block(self) -> str:
        """The path of the parameters of the block after the boundary, see `kd_local.contract.subtree`."""
        return f"{module_name(self.number + 1, len(self.boundaries) + 1)}/params/blocks/0"

    @property
    def last_layers(self) -> nn.Module:
        """A network with the structure of the last block, with `outputs` outputs."""
        last = self.network.modules[-1]
        return last.clone(classes=self.outputs) if hasattr(last, "classes") else Classifier(self.outputs)


@dataclass(frozen=True)
class UntrainedPart:
    """A part of the state that no optimizer updates, and the program that owns it.

    Attributes:
        program: computes the part's next value, such as a moving average, or tensors from it, such as a teacher's
            logits.
        init: `(key, shape) -> part`, with the shape of the module's output, or of the images if the program runs before
            the modules; the part is `{"params": ..., "batch_stats": ...}`.
    """

    program: Program
    init: Callable[[PRNGKeyArray, jax.ShapeDtypeStruct], StatePart]


@dataclass(frozen=True)
class Attachment:
    """An auxiliary network and its connections to the rest of the step.

    Attributes:
        auxiliary: the auxiliary network.
        frozen: paths of the subtrees of the state that it reads, see `kd_local.contract.subtree`.
        after: the untrained parts that are updated after the module has used them.
        loss: the name of a loss that replaces the local loss of this module; None: the local loss.
    """

    auxiliary: Auxiliary
    frozen: tuple[str, ...] = ()
    after: tuple[UntrainedPart, ...] = ()
    loss: str | None = None


@runtime_checkable
class AuxiliaryRule(Protocol):
    """The rule that makes the auxiliary network of each boundary. Its fields are hyper-parameters."""

    @property
    def uses_head(self) -> bool:
        """True if the auxiliary networks contain `Boundary.head`."""
        ...

    def at(self, boundary: Boundary) -> Attachment:
        """The auxiliary network of the module before a boundary.

        Raises:
            ValueError: the network or the boundary does not fit the rule.
        """
        ...


@dataclass(frozen=True)
class Branch:
    """An auxiliary network inside the last module. Its loss is added to that of the network's logits.

    Attributes:
        auxiliary: the auxiliary network.
        end: the number of blocks before it, of the network, or of the module in `LocalModule`.
        name: begins the names of its metrics, as in `stone_accuracy`.
        frozen: paths of the subtrees of the state that it reads, see `kd_local.contract.subtree`.
    """

    auxiliary: Auxiliary
    end: int
    name: str
    frozen: tuple[str, ...] = ()


@runtime_checkable
class TargetRule(AuxiliaryRule, Protocol):
    """A rule whose losses compare logits with targets, such as a teacher's logits."""

    def targets(self) -> UntrainedPart:
        """The part whose program runs before the modules, and writes the targets."""
        ...

    def loss(self, task_loss: TaskLoss) -> LocalLoss:
        """The loss of every module, the last included: `(logits, labels, *targets) -> metrics`.

        Raises:
            ValueError: the loss would ignore `task_loss`.
        """
        ...

    def branch(self, network: Network) -> Branch | None:
        """The auxiliary network inside the last module; None if there is none."""
        ...
