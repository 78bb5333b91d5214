"""A head alone: the auxiliary network of greedy local learning, InfoPro and ContSup."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.local.auxiliary import Apply, Attachment, Boundary
from kd_local.networks import init_block


@dataclass(frozen=True)
class Head:
    """The module's output passes through a head. See `Auxiliary`.

    Attributes:
        network: the head, see `kd_local.local.heads`.
    """

    network: nn.Module

    def init(self, rng: PRNGKeyArray, output: jax.ShapeDtypeStruct) -> Mapping[str, Mapping[str, Any]]:
        """New variables of the head."""
        return {"head": init_block(self.network, rng, output)}

    def __call__(
        self, apply: Apply, output: Float[Array, "batch h w c"], frozen: tuple[Any, ...]
    ) -> tuple[Float[Array, "batch h w c"], Float[Array, "batch k"]]:
        """The module's output, and the head's output."""
        return output, apply("head", self.network, output)


@dataclass(frozen=True)
class HeadRule:
    """The same kind of head at each boundary. See `AuxiliaryRule`."""

    uses_head: ClassVar[bool] = True

    def at(self, boundary: Boundary) -> Attachment:
        """The head of the module before a boundary."""
        return Attachment(Head(boundary.head))


HEAD_ALONE = HeadRule()
