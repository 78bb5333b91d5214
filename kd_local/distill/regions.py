"""Logits of regions of a network's last feature map."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.distill.objective import Outputs
from kd_local.distill.outputs import classify
from kd_local.models.layers import average_pool_to
from kd_local.networks import Network, Variables
from kd_local.ranges import Number, Numbers
from kd_local.shapes import check_arrays

FINEST = 4
SCALES = Numbers(Number(1, FINEST, whole=True), least=1, rising=True, example=(1, 2))
WeightedDistance = Callable[
    [
        Float[Array, "n classes"],
        Float[Array, "n classes"],
        Int[Array, " n"],
        Float[Array, " n"] | None,
    ],
    Float[Array, ""],
]
"""`(student's logits, target logits, labels, weights of the samples) -> mean`, such as `KD().distance`."""


def check_scales(scales: tuple[int, ...]) -> None:
    """Checks that scales are 1, and 2 or 4 if wanted: a scale is the number of regions along each side of a map.

    Raises:
        ValueError: the scales are others.
    """
    SCALES.check("scales", scales)
    if scales[0] != 1 or 3 in scales:
        raise ValueError(f"scales is {scales!r}: use 1, the whole map, and then 2, 4 or both, such as (1, 2)")


def region_means(x: Float[Array, "batch h w c"], scales: tuple[int, ...] = (1, 2)) -> Float[Array, "batch regions c"]:
    """The means of a map over its regions: first the whole map, then the parts of each scale, row by row.

    The map is first pooled to 4 x 4, and its regions are parts of the result, as in the published code. So with a
    map of, say, 7 x 7, some positions count more than others. A map smaller than 4 x 4 repeats positions.

    Raises:
        ValueError: see `check_scales`.
    """
    check_scales(scales)
    check_arrays(x=(x, "float batch h w c"))
    finest = average_pool_to(x, (FINEST, FINEST))
    pooled = [average_pool_to(finest, (scale, scale)) for scale in scales]
    return jnp.concatenate([part.reshape(x.shape[0], -1, x.shape[-1]) for part in pooled], axis=1)


def region_logits(
    network: Network, variables: Variables, outputs: Outputs, scales: tuple[int, ...]
) -> Float[Array, "batch regions classes"]:
    """The logits of the regions of a network's last map, through its own last layer. `variables` are the network's."""
    means = region_means(outputs.before_pooling, scales)
    logits = classify(network, variables, means.reshape(-1, means.shape[-1]))
    return logits.reshape(*means.shape[:2], -1)


def check_regions(outputs: Outputs, name: str, network: str) -> None:
    """Checks that a network has a last map with regions. `network` is student or teacher.

    Raises:
        ValueError: the head does not average a map, or the map has one position.
    """
    last = outputs.before_pooling
    if last is None:
        raise ValueError(
            f"{name} classifies regions of a map by the last linear layer, but the head of the {network} does not end "
            "in a mean over a map and a linear layer: use another network, such as a ResNet or vit_ti16, or an "
            "objective on whole logits, such as kd"
        )
    if last.shape[1] * last.shape[2] == 1:
        raise ValueError(
            f"{name} compares regions of the last map, but that of the {network} has one position: use larger images, "
            "or an objective on whole logits, such as kd"
        )


def region_weights(
    target: Float[Array, "batch regions classes"], labels: Int[Array, " batch"]
) -> Float[Array, "batch regions"]:
    """2 for a region whose prediction is right where that of the whole map is wrong, or the reverse; 1 for all others.

    The first region is the whole map. Predictions are the target's.
    """
    right = target.argmax(axis=-1).astype(labels.dtype) == labels[:, None]
    return jnp.where(right == right[:, :1], 1, 2).astype(target.dtype)


def by_region(
    distance: WeightedDistance,
    student: Float[Array, "batch regions classes"],
    target: Float[Array, "batch regions classes"],
    labels: Int[Array, " batch"],
) -> Float[Array, ""]:
    """The mean over samples and regions of a distance of logits, with the weights of `region_weights`.

    Reference: Wei et al., "Scale decoupled distillation" (CVPR 2024), and its code. The published code replaces a loss
    that is not finite by 0; this one does not.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    form = "float batch regions classes"
    check_arrays(student=(student, form), target=(target, form), labels=(labels, "int batch"))
    classes, regions = student.shape[-1], student.shape[1]
    weights = jax.lax.stop_gradient(region_weights(target, labels))
    return distance(
        student.reshape(-1, classes), target.reshape(-1, classes), jnp.repeat(labels, regions), weights.reshape(-1)
    )
