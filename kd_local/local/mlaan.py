"""MLAAN: behind each pair of neighbouring modules, copies of later blocks lead to the pair's loss.

Reference: Zhang et al., "MLAAN: Scaling supervised local learning with multilaminar leap augmented auxiliary network"
(AAAI 2025, arXiv 2406.16633).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.hyperparameters import check_hyperparameters
from kd_local.local.auxiliaries.head import Head
from kd_local.local.auxiliary import Apply, Boundary
from kd_local.local.module import Reconstruction
from kd_local.local.pair import Average, PairAttachment
from kd_local.local.partition import block_names, is_cifar_resnet, man_boundaries
from kd_local.networks import Network, init_block, output_shape
from kd_local.ranges import Flag, Number

WEIGHT = Number(0, 1e6, note="0 leaves the term out")

# By network and number of modules: the leaping blocks of the boundaries 0, 1, ... Those of boundary 0 are never used.
_EARLY, _LATER, _LAST = "2.0 3.0 3.2 3.4", "2.0 3.0 3.3 3.4", "3.0 3.2 3.3 3.4"
_OF_110 = (
    *("2.0 3.0 3.2 3.17",) * 11, *("3.0 3.2 3.3 3.17",) * 10, "3.0 3.3 3.4 3.17", *("3.8 3.17",) * 4,
    *("3.14 3.17",) * 2, "3.15 3.17", "3.16 3.17", "3.17",
)  # fmt: skip
_LEAPS: Mapping[tuple[int, int], tuple[str, ...]] = {
    (5, 8): (_EARLY, _EARLY, _LATER, _LAST, _LAST, "3.2 3.3 3.4", "3.3 3.4"),
    (5, 15): (
        _EARLY, _EARLY, _LATER, _EARLY, _LATER, *(_LAST,) * 5, "3.1 3.2 3.4", "3.2 3.3 3.4", "3.3 3.4", "3.4"
    ),
    (18, 32): _OF_110,
}  # fmt: skip
_MOST = 4


def leaping_blocks(network: Network, boundaries: Sequence[str], number: int) -> tuple[str, ...]:
    """The names of the blocks whose copies follow a boundary.

    >>> from kd_local.models import create
    >>> leaping_blocks(create("resnet32", classes=10), ("stage1/1", "stage2/1"), 0)
    ('stage2/0', 'stage3/0', 'stage3/2', 'stage3/4')

    For ResNet-32 in 8 and 15 modules and ResNet-110 in 32 modules, with the boundaries of `man_boundaries`, the blocks
    are those of the authors. For other cuts, a rule of this package gives the first block of each later stage and
    blocks of the last stage, evenly spaced up to its last block, of four blocks in total if possible.

    Args:
        network: the network.
        boundaries: the names of the blocks after which it is cut.
        number: the boundary's number, from 0.
    """
    modules = len(boundaries) + 1
    for (blocks, table_modules), table in _LEAPS.items():
        known = modules == table_modules and is_cifar_resnet(network, blocks)
        if known and tuple(boundaries) == man_boundaries(network, modules):
            return block_names(table[number])
    own = _stage(boundaries[number])
    later = network.names[network.position(boundaries[number]) + 1 : -1]
    first = {_stage(name): name for name in reversed(later) if _stage(name) != own}
    chosen = [name for name in later if name in first.values()]
    rest = [name for name in later if _stage(name) == _stage(later[-1]) and name not in chosen]
    count = min(max(_MOST - len(chosen), 1), len(rest))
    return (*chosen, *(rest[round(len(rest) / count * j) - 1] for j in range(1, count + 1)))


def _stage(block: str) -> str:
    return block.split("/")[0]


@dataclass(frozen=True)
class LeapingNetwork:
    """Blocks with the structure of selected later blocks, then a head. See `kd_local.local.auxiliary.Auxiliary`.

    The output of the first block is the sum of two blocks: A_0, which is trained, and E_0, whose parameters no
    optimizer updates. E_0 has batch statistics of its own.

    Attributes:
        blocks: the blocks in order, one or more.
        head: the head.
    """

    blocks: tuple[nn.Module, ...]
    head: nn.Module

    def init(self, rng: PRNGKeyArray, output: jax.ShapeDtypeStruct) -> Mapping[str, Mapping[str, Any]]:
        """New variables of the blocks A and of the head, and the batch statistics of E_0."""
        created: dict[str, Mapping[str, Any]] = {}
        for i, (block, key) in enumerate(zip(self.blocks, jax.random.split(rng, len(self.blocks)), strict=True)):
            created[f"leap{i}"] = init_block(block, key, output)
            output = output_shape(block, created[f"leap{i}"], output)
        statistics = {name: own for name, own in created["leap0"].items() if name == "batch_stats"}
        created["average"] = jax.tree.map(jax.numpy.array, statistics)
        return {**created, "head": init_block(self.head, jax.random.fold_in(rng, len(self.blocks)), output)}

    def __call__(
        self, apply: Apply, output: Float[Array, "batch ..."], frozen: tuple[Any, ...]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch k"]]:
        """The module's output, and the head's output. `frozen` has the parameters of E_0."""
        first, *others = self.blocks
        x = apply("leap0", first, output) + apply("average", first, output, params=frozen[0])
        for i, block in enumerate(others, 1):
            x = apply(f"leap{i}", block, x)
        return output, apply("head", self.head, x)


@dataclass(frozen=True, kw_only=True)
class MLAAN:
    """The rule of MLAAN. See `PairRule`.

    With the pairs i = 1, ..., K - 1 of `kd_local.local.pair`, z = M_i(y) and heads of their own for x and z:

        z_0 = A_{i,0}(z) + E_{i,0}(z), z_j = A_{i,j}(z_{j-1}), j = 1, 2, ...
        loss_i = w_x CE(head_x(x)) + w_y CE(head_z(z_n)), i < K - 1.

    A and E start as copies of the blocks of `leaping_blocks`. A is trained. E is frozen or a moving average of the
    blocks: E <- m E + (1 - m) block, after the backward passes, with the block from before the optimizer's step. In the
    paper's setting the heads are 0c1f, and `man_boundaries` has the cuts.

    The authors' code differs from the description in two places. It averages only the copies of the last boundary, all
    of them, of which it uses the first; all others keep their first values. And the loss of the last pair is CE(z)
    alone, in place of w_x CE(x) + w_y CE(z).

    Attributes:
        weight_x: w_x, the weight of the loss of a module alone, 0 or larger.
        weight_y: w_y, the weight of the loss of a pair, 0 or larger.
        momentum: m, the share of the old average kept at an update, in [0, 1].
        faithful: True: as the authors' code. False: as the paper describes it.
        leaps: the names of the leaping blocks of each boundary, from boundary 0 on; None: those of `leaping_blocks`.
    """

    weight_x: Annotated[float, WEIGHT] = 0.001
    weight_y: Annotated[float, WEIGHT] = 0.999
    momentum: Annotated[float, Number(0, 1, example=0.995)] = 0.995
    faithful: Flag = True
    leaps: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        if not self.weight_x + self.weight_y:
            raise ValueError("weight_x and weight_y are 0, so that nothing would train: set one")

    @property
    def last_weights(self) -> tuple[float, float]:
        """Those of the two cross entropies of the last pair."""
        return (0.0, 1.0) if self.faithful else (self.weight_x, self.weight_y)

    def at(self, boundary: Boundary, decoder: Reconstruction | None) -> PairAttachment:
        """The leaping blocks of the pair whose second module ends at a boundary.

        Raises:
            ValueError: there is a decoder, or the leaping blocks are not blocks after the boundary.
        """
        if decoder is not None:
            raise ValueError("MLAAN has no decoder: leave decoder out")
        network, weights = boundary.network, (self.weight_x, self.weight_y, 0.0)
        names = self._leaps(boundary)
        if not names:
            return PairAttachment(Head(boundary.head), weights)
        last = boundary.number == len(boundary.boundaries) - 1
        averaged = last or not self.faithful
        return PairAttachment(
            LeapingNetwork(tuple(network[name] for name in names), boundary.head),
            weights,
            copies=tuple((f"leap{i}", name) for i, name in enumerate(names)),
            average=Average(names if last and self.faithful else names[:1], self.momentum if averaged else None),
        )

    def _leaps(self, boundary: Boundary) -> tuple[str, ...]:
        network, number = boundary.network, boundary.number
        if self.leaps is None:
            return leaping_blocks(network, boundary.boundaries, number)
        if len(self.leaps) != len(boundary.boundaries):
            raise ValueError(
                f"leaps has {len(self.leaps)} groups for {len(boundary.boundaries)} boundaries: give one each"
            )
        for name in self.leaps[number]:
            if not boundary.end <= network.position(name) < len(network) - 1:
                raise ValueError(
                    f"leaping block {name!r} is not between boundary {boundary.boundaries[number]!r} and the head: "
                    "name a later block"
                )
        return tuple(self.leaps[number])
