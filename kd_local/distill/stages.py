"""Pairs of a student's and a teacher's stages, and features at a common resolution."""

from jaxtyping import Array, Float

from kd_local.distill.objective import Outputs
from kd_local.models.layers import average_pool_to
from kd_local.networks import Network


def pair_stages(student: Outputs, teacher: Outputs, *, stem: bool = False) -> tuple[tuple[int, int], ...]:
    """Indices of (student, teacher) stages in network order, paired from the last stages backwards.

    With `stem`, the stems (index 0 of each) may be paired too.

    Raises:
        ValueError: one of the two networks has no stage to pair.
    """
    counts = (len(student.features), len(teacher.features))
    first = 0 if stem else 1
    pairs = min(counts) - first
    if pairs < 1:
        raise ValueError(
            f"a student of {counts[0]} and a teacher of {counts[1]} stages have none to pair: expected {first + 1} or "
            "more of each; use a network of several stages, or an objective of logits alone"
        )
    return tuple((counts[0] - i, counts[1] - i) for i in range(pairs, 0, -1))


def rectified(network: Network, stage: int) -> bool:
    """Whether the features of that stage are taken after a ReLU, as in ResNets, or before one, as in pre-activation
    networks. Connectors that replace them must match."""
    return bool(getattr(network[network.stages[stage]], "relu", False))


def at_smaller_resolution(
    student: Float[Array, "batch hs ws cs"], teacher: Float[Array, "batch ht wt ct"]
) -> tuple[Float[Array, "batch h w cs"], Float[Array, "batch h w ct"]]:
    """Both tensors, the larger one average-pooled to the height and width of the smaller one."""
    size = (min(student.shape[1], teacher.shape[1]), min(student.shape[2], teacher.shape[2]))
    return average_pool_to(student, size), average_pool_to(teacher, size)
