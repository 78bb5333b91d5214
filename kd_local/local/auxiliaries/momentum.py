"""MAN and MAN++: a trained twin and a moving average of the block after the boundary, then a head.

References: Su et al., "Momentum auxiliary network for supervised local learning" (MAN, ECCV 2024, arXiv 2407.05623);
Su et al., MAN++ (IEEE TPAMI 2026, arXiv 2507.16279).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.choices.local import DEFAULT_HEAD, FEATURE_WIDTH
from kd_local.contract import Program, StatePart
from kd_local.hyperparameters import check_hyperparameters
from kd_local.local.auxiliary import Apply, Attachment, Boundary, UntrainedPart, module_name
from kd_local.local.heads import local_head
from kd_local.local.moving_average import moving_average
from kd_local.networks import init_block, output_shape
from kd_local.ranges import Choice, Flag, Number

AVERAGE = "average"
"""The name of the averaged block among the batch statistics of the module, and the start of the name of its part."""


class ScaledSum(nn.Module):
    """s a + (2 - s) b, with a trained scalar s that starts at 1."""

    @nn.compact
    def __call__(
        self, twin: Float[Array, "batch ..."], average: Float[Array, "batch ..."], *, train: bool
    ) -> Float[Array, "batch ..."]:
        scale = self.param("scale", nn.initializers.ones, (), jnp.float32).astype(twin.dtype)
        return scale * twin + (2 - scale) * average


@dataclass(frozen=True)
class TwinAndAverage:
    """The output y = s LB(x) + (2 - s) E(x), or LB(x) + E(x), then further blocks, then a head. See `Auxiliary`.

    The batch statistics of E belong to the module; the parameters of E are frozen.

    Attributes:
        block: the structure of LB and E.
        further: trained blocks between y and the head.
        head: the head.
        trained_scale: True if s is trained.
    """

    block: nn.Module
    further: tuple[nn.Module, ...]
    head: nn.Module
    trained_scale: bool

    @property
    def _after(self) -> Mapping[str, nn.Module]:
        """The networks after y by their names."""
        return {**{f"further{i}": block for i, block in enumerate(self.further)}, "head": self.head}

    def init(self, rng: PRNGKeyArray, output: jax.ShapeDtypeStruct) -> Mapping[str, Mapping[str, Any]]:
        """New variables: those of LB, the statistics of E, and those of scale, further blocks and head."""
        twin, average, scale, *keys = jax.random.split(rng, 3 + len(self._after))
        created: dict[str, Mapping[str, Any]] = {"twin": init_block(self.block, twin, output)}
        new = init_block(self.block, average, output)  # its parameters are those of the untrained part
        created[AVERAGE] = {key: value for key, value in new.items() if key != "params"}
        x = self.features(created, output)
        if self.trained_scale:
            created["scale"] = init_block(ScaledSum(), scale, x, x)
        for (name, network), key in zip(self._after.items(), keys, strict=True):
            created[name] = init_block(network, key, x)
            x = output_shape(network, created[name], x)
        return created

    def features(self, created: Mapping[str, Mapping[str, Any]], output: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Shape and dtype of y, which a decoder reads."""
        return output_shape(self.block, created["twin"], output)

    def __call__(
        self, apply: Apply, output: Float[Array, "batch ..."], frozen: tuple[Any, ...]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch k"]]:
        """y, and the head's output."""
        twin = apply("twin", self.block, output)
        average = apply(AVERAGE, self.block, output, params=frozen[0])
        y = x = apply("scale", ScaledSum(), twin, average) if self.trained_scale else twin + average
        for name, network in self._after.items():
            x = apply(name, network, x)
        return y, x


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """The rule of MAN and MAN++. See `AuxiliaryRule`.

    Boundary i has the auxiliary network

        y = LB(x) + E(x)                 MAN, `scale="fixed"`
        y = s LB(x) + (2 - s) E(x)       MAN++, `scale="trained"`

    with the structure of N, the block after the boundary, in LB, the trained twin, and in E. A head and a decoder read
    y. All blocks use the statistics of the batch. The parameters of E are a moving average of those of N,

        E <- m E + (1 - m) N,

    after the module has used E, with the N from before this step's update. Only parameters are averaged; E has running
    statistics of its own. LB, E and N start with different random parameters, as in the authors' code.

    The average is the part `average00` of the state (00 is the number of the boundary), which a program owns. With
    several groups of devices this program runs on the group of N. The step is exact and the groups overlap: for batch t
    a module needs the average after batch t - 1, which needs N after batch t - 2. While a group works on batch t, the
    next group may work on batch t - 1. With four groups on two CPU cores, a step of ResNet-8 takes as long as with
    averages that never move (ratio 0.98, CPU time 1.02, medians of nine interleaved runs). Two cores cannot show
    the overlap.
    With `optimizer.accumulate`, E moves with each batch, not with each update.

    Use `man_boundaries` or `man_plus_boundaries`; they say how the papers count K. With a decoder, use
    `man_loss_weights`. MAN++ without a decoder has the head `dgl_wide`.

    Attributes:
        momentum: m, the share of the average that remains in a step, in [0, 1).
        scale: fixed, s = 1, as in MAN; trained, a scalar of each boundary, as in MAN++.
        blocks: 1: y is the head's input. 2: a trained copy of the second block after the boundary follows, then a copy
            of the network's last layers. MAN++ has these for vision transformers, instead of a head.
        faithful: True: the module of the stem has a head 1c2f of 128 outputs and the contrastive loss. The authors'
            code of MAN++ has them with any of InfoPro's heads in the other modules.
    """

    momentum: Annotated[float, Number(0, 1, open_high=True, example=0.995)] = 0.995
    scale: Annotated[str, Choice("scale", ("fixed", "trained"))] = "fixed"
    blocks: Annotated[int, Number(1, 2, whole=True)] = 1
    faithful: Flag = False

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        if self.faithful and not self.uses_head:
            raise ValueError("faithful is True, but with blocks=2 the stem has no head: leave one of them out")

    @property
    def uses_head(self) -> bool:
        """True if the auxiliary networks contain `Boundary.head`."""
        return self.blocks == 1

    def at(self, boundary: Boundary) -> Attachment:
        """The twin and the average of the block after a boundary.

        Raises:
            ValueError: one of the blocks to copy is the network's classifier, or does not exist.
        """
        network, first = boundary.network, boundary.boundaries[boundary.number]
        block, *further = network.modules[boundary.end :][: self.blocks]
        if boundary.end + self.blocks >= len(network):
            raise ValueError(
                f"MAN copies {self.blocks} block{'s' if self.blocks > 1 else ''} after {first}, but the network's last "
                f"layers, {network.names[-1]}, cannot be copied: cut after {network.names[-2 - self.blocks]} or before"
            )
        head, loss = boundary.head if self.uses_head else boundary.last_layers, None
        if self.faithful and boundary.number == 0:
            if first != network.names[0]:
                raise ValueError(
                    f"faithful is True, but the first module ends after {first}: cut after {network.names[0]} too "
                    "(boundaries of MAN++), or leave faithful out"
                )
            head, loss = local_head(DEFAULT_HEAD, outputs=FEATURE_WIDTH, dtype=boundary.dtype), "contrast"
        number = module_name(boundary.number, len(boundary.boundaries) + 1).removeprefix("module")
        name = f"{AVERAGE}{number}"
        program = Program(
            name=name,
            key=_move,
            function=_move,
            reads=(),
            frozen=(boundary.next_block,),
            constants=(self.momentum,),
            trains=False,
        )
        return Attachment(
            TwinAndAverage(block, tuple(further), head, self.scale == "trained"),
            frozen=(f"{name}/params",),
            after=(UntrainedPart(program, partial(_new_average, block)),),
            loss=loss,
        )


def _new_average(block: nn.Module, rng: PRNGKeyArray, output: jax.ShapeDtypeStruct) -> StatePart:
    return {"params": init_block(block, rng, output)["params"], "batch_stats": {}}


def _move(
    part: StatePart, frozen: tuple[Any, ...], tensors: tuple[Array, ...], rng: PRNGKeyArray, constants: Array
) -> tuple[StatePart, tuple[()], dict[str, Array]]:
    """The next value of an average. The constant is m."""
    return {**part, "params": moving_average(part["params"], frozen[0], constants[0])}, (), {}
