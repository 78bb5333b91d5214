"""A teacher: a network with fixed parameters and statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.trained_blocks import after_stage
from kd_local.errors import check_type
from kd_local.networks import Network, Variables, check_network
from kd_local.ranges import Number

MEAN, STD = Number(-1e6, 1e6), Number(0, 1e6, open_low=True)


@dataclass(frozen=True)
class Renormalisation:
    """An affine map of each channel, from images with the student's normalisation to images with the teacher's.

    >>> float(Renormalisation.between(([100.0], [50.0]), ([150.0], [25.0]))(jnp.full((1, 1, 1, 1), 3.0)).item())
    4.0

    Attributes:
        scale, shift: one number per channel.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @classmethod
    def between(
        cls,
        student: tuple[Sequence[float], Sequence[float]],
        teacher: tuple[Sequence[float], Sequence[float]],
    ) -> "Renormalisation | None":
        """The map between two normalisations, given as `(mean, std)` with a number per channel; None if they are equal.

        Raises:
            ValueError: the teacher's images have another number of channels, or a number is out of range.
        """
        (mean, std), (own_mean, own_std) = student, teacher
        if len(mean) != len(own_mean):
            raise ValueError(
                f"the teacher's images have {len(own_mean)} channels, the student's {len(mean)}: use another teacher"
            )
        for name, numbers, range_ in (("mean", (*mean, *own_mean), MEAN), ("std", (*std, *own_std), STD)):
            for number in numbers:
                range_.check(f"{name} of a channel", number)
        if (tuple(mean), tuple(std)) == (tuple(own_mean), tuple(own_std)):
            return None
        scale = tuple(s / own for s, own in zip(std, own_std, strict=True))
        shift = tuple((m - own) / s for m, own, s in zip(mean, own_mean, own_std, strict=True))
        return cls(scale, shift)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """The images with the teacher's normalisation, in the same dtype."""
        scale, shift = (jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1) for values in (self.scale, self.shift))
        return images * scale + shift


def renormalised(images: Float[Array, "n h w c"], by: Renormalisation | None) -> Float[Array, "n h w c"]:
    """The images with a teacher's normalisation; unchanged if `by` is None."""
    return images if by is None else by(images)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network with its trained variables.

    Parameters and statistics are arguments of each step, so a step compiled for one teacher works for every teacher
    with the same network.

    Attributes:
        network: the teacher's network; the dtype of its blocks is the compute dtype.
        variables: variables of this network, with the structure of `Network.init`'s result.
        renormalisation: converts the student's images to those that the teacher takes; None if both take the same.

    Raises:
        ValueError: an argument has another type.
    """

    network: Network
    variables: Variables
    renormalisation: Renormalisation | None = None

    def __post_init__(self) -> None:
        check_network("a teacher's network", self.network)
        check_type("a teacher's variables", self.variables, Mapping, "use those of network.init, or of a run's file")


def remaining_blocks(network: Network, variables: Variables, stage: int, x: Array, until: int | None = None) -> Array:
    """See `kd_local.distill.objective.RemainingBlocks`; stage 0 is the stem."""
    remaining = after_stage(network, stage, until)
    return remaining.apply(remaining.select(variables), x, train=False)[0]
