"""A teacher: a network whose parameters and statistics stand still."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from kd_local.networks import Network, Variables


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network with its trained variables.

    Its compute dtype is the network's. Parameters and statistics are handed to each step as arguments, so that a step
    compiled for one teacher serves any of the same network.
    """

    network: Network
    variables: Variables

    def check(self, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> None:
        """Whether the variables are those of the network.

        Raises:
            ValueError: the first that is missing, of another shape, or not expected.
        """
        expected = flatten_dict(jax.eval_shape(self.network.init, jax.random.key(0), images), sep="/")
        given = flatten_dict(dict(self.variables), sep="/")
        for name, like in expected.items():
            if name not in given or given[name].shape != like.shape:
                shape = given[name].shape if name in given else "missing"
                raise ValueError(
                    f"the teacher's {name} is {shape}, expected {like.shape}: give variables of this very network"
                )
        if more := sorted(given.keys() - expected.keys()):
            raise ValueError(
                f"the teacher's {more[0]} has no place in its network: give variables of this very network"
            )


def rest_of(
    network: Network, variables: Mapping[str, Mapping[str, Any]], stage: int, x: Array, until: int | None = None
) -> Array:
    """See `kd_local.distill.objective.Rest`; stage 0 is the stem."""
    ends = [network.position(name) + 1 for name in network.stages]
    behind = network[ends[stage] : None if until is None else ends[until]]
    return behind.apply(behind.select(variables), x, train=False)[0]
