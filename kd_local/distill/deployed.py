"""The deployed network of a method as a teacher's network: contexts and other layers of the method included.

It gives logits only, for methods whose deployed network is not a sequence of blocks: ContSup, SimKD.
"""

from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.contract import Method, State
from kd_local.networks import COLLECTIONS, Network, Variables


class DeployedMethod(nn.Module):
    """The logits of a method's deployed network, in evaluation mode.

    Attributes:
        method: the method; its state without optimizer states is the block's variables.
        label: a text in `repr`, which identifies the method.
    """

    method: Method
    label: str = ""
    layers: ClassVar[int] = 1
    maps: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        if self.is_initializing():
            for name, part in self.method.init(self.make_rng("params"), x).items():
                for collection in COLLECTIONS:
                    self.put_variable(collection, name, part[collection])
        found: dict[str, dict[str, Any]] = {}
        for collection in COLLECTIONS:
            for name, own in self.variables.get(collection, {}).items():
                found.setdefault(name, {key: {} for key in COLLECTIONS})[collection] = own
        return self.method.logits(found, x)

    def __repr__(self) -> str:
        return f"DeployedMethod({self.label})"


class GivenLogits(nn.Module):
    """Head behind `DeployedMethod`: its input are the logits."""

    layers: ClassVar[int] = 0
    maps: ClassVar[bool] = False

    def pool(self, x: Float[Array, "batch k"], *, train: bool) -> Float[Array, "batch k"]:
        """The logits."""
        return x

    def classify(self, pooled: Float[Array, "batch k"]) -> Float[Array, "batch k"]:
        """The logits."""
        return pooled

    def __call__(self, x: Float[Array, "batch k"], *, train: bool) -> Float[Array, "batch k"]:
        return x


_FIRST, _LAST = "deployed/0", "deployed/1"


def deployed_network(method: Method, label: str = "") -> Network:
    """The deployed network of a method as two blocks; its features are not maps."""
    return Network.of({_FIRST: DeployedMethod(method, label), _LAST: GivenLogits()})


def deployed_variables(state: State) -> Variables:
    """The variables of `deployed_network`, from the state of its method. Optimizer states may be missing."""
    return {
        collection: {_FIRST: {name: part[collection] for name, part in state.items() if part.get(collection)}}
        for collection in COLLECTIONS
    }
