"""Makes a teacher's network of the deployed network of a method, with contexts and other layers of the method.

It is for methods whose deployed network is not a sequence of blocks (ContSup, SimKD), and gives only logits.
"""

from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kd_local.contract import Method, State
from kd_local.networks import COLLECTIONS, Network, Variables


class DeployedMethod(nn.Module):
    """The logits of a method's deployed network, in evaluation mode.

    Attributes:
        method: the method. The block's variables are the method's state without optimizer state.
        label: a text for `repr` that identifies the method.
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
    """Head after `DeployedMethod`. Its input is the logits."""

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
    """The deployed network of a method as two blocks. Its features are not maps."""
    return Network.of({_FIRST: DeployedMethod(method, label), _LAST: GivenLogits()})


def deployed_variables(state: State) -> Variables:
    """The variables of `deployed_network`, from the state of its method. Optimizer state may be missing."""
    return {
        collection: {_FIRST: {name: part[collection] for name, part in state.items() if part.get(collection)}}
        for collection in COLLECTIONS
    }
