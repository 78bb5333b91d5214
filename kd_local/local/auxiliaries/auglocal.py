"""AugLocal: the auxiliary network is a thinned copy of the blocks after the boundary, with weights of its own.

Reference: Ma, Wu, Si and Tan, "Scaling supervised local learning with augmented auxiliary networks" (ICLR 2024, arXiv
2402.17318).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.hyperparameters import check_hyperparameters
from kd_local.local.auxiliary import Apply, Attachment, Boundary
from kd_local.models.ends import Classifier
from kd_local.models.layers import DType, Linear, global_average_pool
from kd_local.models.normalization import BatchNorm
from kd_local.networks import Network, init_block, output_shape
from kd_local.ranges import Flag, Number


@dataclass(frozen=True)
class ThinnedNetwork:
    """New blocks with the structure of selected later blocks, then a classifier. See `Auxiliary`.

    Attributes:
        blocks: the blocks in order.
        classifier: the last layers.
    """

    blocks: tuple[nn.Module, ...]
    classifier: nn.Module

    @property
    def named(self) -> Mapping[str, nn.Module]:
        """The networks by their names among the module's variables."""
        return {**{f"auxiliary{i}": block for i, block in enumerate(self.blocks)}, "classifier": self.classifier}

    def init(self, rng: PRNGKeyArray, output: jax.ShapeDtypeStruct) -> Mapping[str, Mapping[str, Any]]:
        """New variables of the blocks and the classifier."""
        created = {}
        for (name, network), key in zip(self.named.items(), jax.random.split(rng, 1 + len(self.blocks)), strict=True):
            created[name] = init_block(network, key, output)
            output = output_shape(network, created[name], output)
        return created

    def __call__(
        self, apply: Apply, output: Float[Array, "batch ..."], frozen: tuple[Any, ...]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch k"]]:
        """The module's output, and the classifier's output."""
        x = output
        for name, network in self.named.items():
            x = apply(name, network, x)
        return output, x


class NormalisedClassifier(nn.Module):
    """Global average pooling, batch normalisation and a linear layer."""

    classes: int
    dtype: DType = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch k"]:
        pooled = global_average_pool(x)[:, None, None]
        pooled = BatchNorm(dtype=self.dtype, name="norm")(pooled, train=train)[:, 0, 0]
        return Linear(self.classes, dtype=self.dtype, name="linear")(pooled)


@dataclass(frozen=True, kw_only=True)
class AugLocal:
    """The rule of AugLocal. See `AuxiliaryRule`.

    With L blocks before the network's head and auxiliary depth d, the authors cut after each of the first L - d - 1
    blocks, so that there are L - d modules and the last has d + 1 blocks (`single_blocks(network, L - d)`). Any other
    cut works too. The auxiliary networks can be larger than the network: for ResNet-32 with d = 3 they have three times
    its parameters.

    Boundary i = 0, ..., K - 2 has an auxiliary network of depth

        d_i = max(1, round(d (1 - r) + r)), r = c i / (K - 2),

    that is of the d_i layers round(l + (L - 1 - l) j / d_i), j = 1, ..., d_i, for a boundary after layer l, or of all
    later layers if there are no more than d_i. `round` is to even. A copied block halves the resolution if it, or a
    block left out before it, does so in the network; two halvings are made by two blocks. The classifier is that of the
    network. For d_i = 1, batch normalisation comes before the linear layer of a `Classifier`.

    Attributes:
        depth: d, the number of blocks of the first auxiliary network, 1 or more.
        pyramidal: True: c = 0.5, the depth falls with the boundaries. False: all auxiliary networks have depth d.
    """

    uses_head: ClassVar[bool] = False
    depth: Annotated[int, Number(1, 1000, whole=True, example=2)] = 2
    pyramidal: Flag = True

    def __post_init__(self) -> None:
        check_hyperparameters(self)

    def at(self, boundary: Boundary) -> Attachment:
        """The thinned copy of the blocks after a boundary.

        Raises:
            ValueError: a block cannot be copied with another stride or another input.
        """
        layers = boundary.network.modules[:-1]
        depth = self.depth_at(boundary.number, len(boundary.boundaries))
        blocks, halvings, previous = [], 0, boundary.end - 1
        for layer in selected_layers(boundary.end - 1, len(layers), depth):
            halvings += sum(map(_halves, layers[previous + 1 : layer + 1]))
            blocks.append(_copy(boundary.network, layer, halve=halvings > 0))
            halvings, previous = max(halvings - 1, 0), layer
        return Attachment(ThinnedNetwork(tuple(blocks), _classifier(boundary, depth)))

    def depth_at(self, boundary: int, boundaries: int) -> int:
        """The depth d_i of the auxiliary network of a boundary, of `boundaries` boundaries."""
        if not self.pyramidal or boundaries < 2:
            return self.depth
        ratio = 0.5 * boundary / (boundaries - 1)
        return max(1, round(self.depth * (1 - ratio) + ratio))


def selected_layers(boundary: int, layers: int, depth: int) -> Sequence[int]:
    """The layers whose structure is copied, see `AugLocal`.

    >>> selected_layers(0, 16, 3)
    [5, 10, 15]

    Args:
        boundary: l, the index of the last layer before the boundary.
        layers: L, the number of layers: all blocks but the network's head.
        depth: d_i.
    """
    remaining = layers - 1 - boundary
    if depth >= remaining:
        return range(boundary + 1, layers)
    return [round(boundary + remaining / depth * j) for j in range(1, depth + 1)]


def _fields(block: nn.Module) -> set[str]:
    return {field.name for field in fields(block)}


def _halves(block: nn.Module) -> bool:
    """True if a block halves the resolution."""
    return getattr(block, "stride", 1) > 1 or getattr(block, "pool_from", None) is not None


def _copy(network: Network, layer: int, *, halve: bool) -> nn.Module:
    """A block with the structure of a layer of the network, which halves the resolution or keeps it."""
    block, names = network.modules[layer], _fields(network.modules[layer])
    if getattr(block, "copies", True):
        if "stride" in names:
            changes: dict[str, Any] = {"pool_first": False} if "pool_first" in names else {}
            return block.clone(stride=2 if halve else 1, **changes)
        if "pool_from" in names:
            return block.clone(pool_from=2 if halve else None)
        if "features" not in names and not halve:
            return block
    raise ValueError(
        f"AugLocal cannot copy block {network.names[layer]!r} ({type(block).__name__}) with another input or stride: "
        "use a ResNet, Wide ResNet, VGG, MobileNet or ViT, or another auxiliary network"
    )


def _classifier(boundary: Boundary, depth: int) -> nn.Module:
    if isinstance(boundary.network.modules[-1], Classifier) and depth == 1:
        return NormalisedClassifier(boundary.outputs, boundary.dtype)
    return boundary.last_layers
