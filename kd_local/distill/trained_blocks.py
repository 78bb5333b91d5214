"""A network's blocks after a stage, in training mode, with statistics of the caller."""

from typing import Any

import jax
import jax.numpy as jnp
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


def statistics_at_zero(blocks: Network, x: Float[Array, "n _ _ _"] | jax.ShapeDtypeStruct) -> Collection:
    """Running statistics of blocks, by block, that are all zero; only the shape and dtype of the input `x` matter."""
    shapes = jax.eval_shape(blocks.init, jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype))["batch_stats"]
    return jax.tree.map(lambda statistic: jnp.zeros(statistic.shape, statistic.dtype), shapes)
