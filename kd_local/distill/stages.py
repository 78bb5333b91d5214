"""Pairs of a student's and a teacher's stages, and features at a common resolution."""

from jaxtyping import Array, Float

from kd_local.distill.objective import Outputs
from kd_local.models.layers import average_pool_to
from kd_local.networks import Network


def pair_stages(student: Outputs, teacher: Outputs, *, stem: bool = False) -> tuple[tuple[int, int], ...]:
    """Pairs of stage indices, (student's, teacher's), in network order. Pairing starts with the two last stages.

    Index 0 is the stem, which is paired only with `stem=True`.

    Raises:
        ValueError: one of the two networks has no stage to pair.
    """
    counts = (len(student.features), len(teacher.features))
    first = 0 if stem else 1
    pairs = min(counts) - first
    if pairs < 1:
        raise ValueError(
            f"a student of {counts[0]} and a teacher of {counts[1]} stages, stem included, have no stages to pair: "
            f"expected {first + 1} or more of each; use a network with more stages, or an objective on logits"
        )
    return tuple((counts[0] - i, counts[1] - i) for i in range(pairs, 0, -1))


def rectified(network: Network, stage: int) -> bool:
    """True if the stage ends in a ReLU, as in ResNets; False if it ends before one, as in pre-activation networks.

    A connector whose output replaces the stage's features must end in the same way.
    """
    return bool(getattr(network[network.stages[stage]], "relu", False))


def at_smaller_resolution(
    student: Float[Array, "batch hs ws cs"], teacher: Float[Array, "batch ht wt ct"]
) -> tuple[Float[Array, "batch h w cs"], Float[Array, "batch h w ct"]]:
    """Both tensors at the smaller height and the smaller width, by average pooling."""
    size = (min(student.shape[1], teacher.shape[1]), min(student.shape[2], teacher.shape[2]))
    return average_pool_to(student, size), average_pool_to(teacher, size)
