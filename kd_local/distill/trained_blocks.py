"""A network's blocks after a stage, in training mode, with statistics of the caller."""

from typing import Any

from jaxtyping import Array, Float

from kd_local.networks import Collection, Network


def trained_blocks(
    network: Network,
    params: Any,
    stage: int,
    x: Float[Array, "n _ _ _"],
    statistics: Collection,
    until: int | None = None,
) -> tuple[Array, Collection]:
    """See `kd_local.distill.objective.TrainedBlocks`; stage 0 is the stem, and `params` those of the whole network."""
    blocks = after_stage(network, stage, until)
    return blocks.apply(blocks.select({"params": params, "batch_stats": statistics}), x, train=True)


def after_stage(network: Network, stage: int, until: int | None = None) -> Network:
    """The blocks after the stage with this index, up to the end of the stage `until`, or to the logits."""
    ends = [network.position(name) + 1 for name in network.stages]
    return network[ends[stage] : None if until is None else ends[until]]
