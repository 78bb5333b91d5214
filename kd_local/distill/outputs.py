"""Outputs of a network: the features of each stage, the input of the last layer, and the logits."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from kd_local.distill.objective import Outputs
from kd_local.networks import Collection, Network, Variables, apply_block, of_block


def outputs(
    network: Network, variables: Variables, images: Float[Array, "batch h w c"], *, train: bool
) -> tuple[Outputs, Collection]:
    """`(outputs, batch statistics)` of a network for a batch, in one pass; see `Network.features`.

    The last block needs the methods `pool`, which returns the input of its linear layer, and `classify`, which returns
    the logits.
    """
    features, preactivations, statistics = [], [], {}
    ends, x = set(network.stages), images
    for name, block in network[:-1]:
        own = of_block(variables, name)
        if name in ends and getattr(block, "relu", False):
            before, statistics_of = apply_block(block.clone(relu=False), own, x, train=train)
            x = nn.relu(before)
        else:
            x, statistics_of = apply_block(block, own, x, train=train)
            before = x
        if statistics_of:
            statistics[name] = statistics_of
        if name in ends:
            features.append(x)
            preactivations.append(before)
    name, head = network.names[-1], network.modules[-1]
    own = of_block(variables, name)
    pooled, statistics_of = _pool(head, own, x, train)
    if statistics_of:
        statistics[name] = statistics_of
    logits = head.apply(own, pooled, method="classify")
    return Outputs(tuple(features), tuple(preactivations), pooled, logits), statistics


def output_shapes(network: Network, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> Outputs:
    """The shapes of the results of `outputs`. Only the shape and dtype of `images` matter."""
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return jax.eval_shape(partial(outputs, network, train=False), variables, images)[0]


def _pool(head: nn.Module, own: Mapping[str, Any], x: Array, train: bool) -> tuple[Any, Collection]:
    if not train:
        return head.apply(own, x, train=False, method="pool"), own.get("batch_stats", {})
    pooled, updated = head.apply(own, x, train=True, method="pool", mutable=["batch_stats"])
    return pooled, updated.get("batch_stats", {})
