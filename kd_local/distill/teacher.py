"""A teacher: a network with fixed parameters and statistics."""

from dataclasses import dataclass

from jaxtyping import Array

from kd_local.networks import Network, Variables


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network with its trained variables.

    Parameters and statistics are arguments of each step, so a step compiled for one teacher serves any of the same
    network.

    Attributes:
        network: its blocks; their dtype is that of the computation.
        variables: as `Network.init` gives them.
    """

    network: Network
    variables: Variables


def remaining_blocks(network: Network, variables: Variables, stage: int, x: Array, until: int | None = None) -> Array:
    """See `kd_local.distill.objective.RemainingBlocks`; stage 0 is the stem."""
    ends = [network.position(name) + 1 for name in network.stages]
    remaining = network[ends[stage] : None if until is None else ends[until]]
    return remaining.apply(remaining.select(variables), x, train=False)[0]
