"""Outputs of a network: the features of each stage, the input of the last layer, and the logits."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from kd_local.distill.objective import Outputs
from kd_local.models.layers import global_average_pool
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
    before_pooling, pooled, statistics_of = _pool(head, own, x, train)
    if statistics_of:
        statistics[name] = statistics_of
    logits = head.apply(own, pooled, method="classify")
    return Outputs(tuple(features), tuple(preactivations), pooled, logits, before_pooling), statistics


def output_shapes(network: Network, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> Outputs:
    """The shapes of the results of `outputs`. Only the shape and dtype of `images` matter."""
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return jax.eval_shape(partial(outputs, network, train=False), variables, images)[0]


def classify(network: Network, variables: Variables, pooled: Float[Array, "n c"]) -> Float[Array, "n classes"]:
    """The logits for inputs of the last linear layer, such as `Outputs.pooled`."""
    own = of_block(variables, network.names[-1])
    return network.modules[-1].apply(own, pooled, method="classify")  # type: ignore[return-value]


def _pool(head: nn.Module, own: Mapping[str, Any], x: Array, train: bool) -> tuple[Array | None, Array, Collection]:
    """`(map or None, pooled features, batch statistics)`; the map is that whose mean the pooled features are."""
    has_map = hasattr(head, "before_pooling")
    call = partial(head.apply, method="before_pooling" if has_map else "pool")
    if train:
        found, updated = call(own, x, train=True, mutable=["batch_stats"])
        statistics = updated.get("batch_stats", {})
    else:
        found, statistics = call(own, x, train=False), own.get("batch_stats", {})
    return (found, global_average_pool(found), statistics) if has_map else (None, found, statistics)
