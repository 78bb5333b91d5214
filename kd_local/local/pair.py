"""One pair of neighbouring modules, which a loss of its own trains: HPFF and MLAAN.

With modules M_0, ..., M_{K-1} and CE the cross entropy, the pair loss i = 1, ..., K - 1 is

    w_x CE(head_x(M_i(stop(y)))) + w_y (loss of what follows M_i(y)),  y = M_{i-1}(stop(output of M_{i-2})).

The first term trains M_i alone, the second M_{i-1} and M_i. A module has the sum of the gradients of its two pairs.
The authors compute two chains of modules, x and y. The chains have the same values, since no module is updated before
both have passed it. They differ only in where gradients stop. So there is one chain here, and XLA computes M_i once
for both terms.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.contract import Metrics
from kd_local.local.auxiliary import Auxiliary, Boundary
from kd_local.local.decoders import PixelScale
from kd_local.local.losses import LocalLoss
from kd_local.local.module import Reconstruction, network_application
from kd_local.networks import Collection, Network, Variables, of_block

INDEPENDENT_HEAD = "independent_head"
"""The name of the head that reads M_i(stop(y)), among the variables of the first module's program."""


@runtime_checkable
class PairReconstruction(Protocol):
    """The decoder of a pair, and its loss. It is hashable."""

    @property
    def network(self) -> nn.Module:
        """Maps `(features, images)` to the logits of pixels."""
        ...

    def loss(self, logits: Array, images: Float[Array, "batch h w c"]) -> Float[Array, ""]:
        """The loss of the logits, for images in [0, 1]."""
        ...


@dataclass(frozen=True)
class Average:
    """Copies of blocks of the network in a part of the state that no optimizer updates.

    Attributes:
        blocks: the names of the blocks.
        momentum: m in average <- m average + (1 - m) block after each step, with the block from before the optimizer's
            step; None: the copies stay as they are.
    """

    blocks: tuple[str, ...]
    momentum: float | None


@dataclass(frozen=True)
class PairAttachment:
    """What a rule adds to a pair of modules.

    Attributes:
        auxiliary: what the output of the second module passes through.
        weights: of the cross entropy of the second module alone, of the cross entropy behind `auxiliary`, and of the
            reconstruction.
        reconstruction: the decoder, or None.
        copies: names of networks of `auxiliary` that start as copies of the blocks with these names.
        average: copies of blocks, whose first one `auxiliary` reads.
    """

    auxiliary: Auxiliary
    weights: tuple[float, float, float]
    reconstruction: PairReconstruction | None = None
    copies: tuple[tuple[str, str], ...] = ()
    average: Average | None = None


@runtime_checkable
class PairRule(Protocol):
    """The rule for the losses of pairs. Its fields are hyper-parameters.

    Attributes:
        last_weights: the weights of the two cross entropies of the last pair: behind `stop`, and without it. Both are
            those of the network's logits.
    """

    @property
    def last_weights(self) -> tuple[float, float]: ...

    def at(self, boundary: Boundary, decoder: Reconstruction | None) -> PairAttachment:
        """What is added to the pair whose second module ends at a boundary.

        Args:
            boundary: the boundary.
            decoder: that of the module, if the network was cut with decoders.

        Raises:
            ValueError: the rule has no such pair.
        """
        ...


@dataclass(frozen=True)
class Pair:
    """Two neighbouring modules with their loss. Pairs with the same computation are equal.

    Attributes:
        first, second: the blocks of the two modules.
        opens: True if `first` is the first module of the network.
        head: the head of the second module alone; None for the last pair, which has the network's logits.
        auxiliary: see `PairAttachment`; None for the last pair.
        reconstruction: the decoder, or None.
        pixels: the normalisation of the images if there is a decoder.
        loss: the cross entropy.
        remat: the names of `REMATERIALIZABLE` that the backward pass recomputes.
        number: of the first module.
        name: of the program, and of the first module.
        second_name: of the second module.
        reads, writes: names of tensors.
        weights: see `PairAttachment`.
        frozen: paths of the subtrees of the state that the auxiliary network reads.
    """

    first: Network
    second: Network
    opens: bool
    head: nn.Module | None
    auxiliary: Auxiliary | None
    reconstruction: PairReconstruction | None
    pixels: PixelScale | None
    loss: LocalLoss
    remat: tuple[str, ...]
    number: int = field(compare=False)
    name: str = field(compare=False)
    second_name: str = field(compare=False)
    reads: tuple[str, ...] = field(compare=False)
    writes: tuple[str, ...] = field(compare=False)
    weights: tuple[float, ...] = field(compare=False)
    frozen: tuple[str, ...] = field(compare=False)

    def losses(
        self,
        own: Variables,
        second: Variables,
        tensors: tuple[Array, ...],
        labels: Int[Array, " batch"],
        weights: Float[Array, " n"] | tuple[float, ...],
        frozen: tuple[Any, ...] = (),
    ) -> tuple[Metrics, Array, Collection, Collection]:
        """The losses of the pair, in training mode.

        Args:
            own: the variables of the first module's blocks and of the pair's heads.
            second: the variables of the second module's blocks.
            tensors: the input of the first module, and the images if there is a decoder.
            labels: in [0, classes).
            weights: the weights of the losses.
            frozen: the subtrees of `frozen`.

        Returns:
            `(metrics, written, batch statistics of own, batch statistics of second)`. `written` is the output of the
            first module, or the network's logits. Batch statistics are updated once for each time that the authors'
            code computes a network: first the chain x, then the chain y.
        """
        statistics: Collection = dict(own["batch_stats"])
        apply = network_application(own, statistics, train=True, remat=self.remat)
        remat = "blocks" in self.remat
        y, statistics["blocks"] = self._first(of_block(own, "blocks"), tensors[0])
        x, once = self.second.apply(second, jax.lax.stop_gradient(y), train=True, remat=remat)
        z, twice = self.second.apply({**second, "batch_stats": once}, y, train=True, remat=remat)
        alone, features, outputs = x, z, z
        if self.head is not None:
            alone = apply(INDEPENDENT_HEAD, self.head, x)
        if self.auxiliary is not None:
            features, outputs = self.auxiliary(apply, z, jax.lax.stop_gradient(frozen))
        metrics = self.loss(outputs, labels)
        terms = {"independent_loss": self.loss(alone, labels)["loss"], "head_loss": metrics["loss"]}
        if self.reconstruction is not None:
            assert self.pixels is not None
            images = tensors[self.reads.index("images")]
            logits = apply("decoder", self.reconstruction.network, features, images)
            terms["reconstruction_loss"] = self.reconstruction.loss(logits, self.pixels.restore(images))
        factors = jnp.asarray(weights, metrics["loss"].dtype)
        each = [factor * term.astype(factors.dtype) for factor, term in zip(factors, terms.values(), strict=True)]
        written = z if self.head is None else y
        return {**metrics, **terms, "loss": sum(each[1:], each[0])}, written, statistics, twice

    def _first(self, variables: Variables, x: Array) -> tuple[Array, Collection]:
        """The output of the first module. The authors compute the first block of the network once for both chains, and
        the other blocks of the first module for each."""
        remat = "blocks" in self.remat
        if not self.opens:
            return self.first.apply(variables, x, train=True, remat=remat)
        x, statistics = self.first[:1].apply(variables, x, train=True, remat=remat)
        if len(self.first) == 1:
            return x, statistics
        following = self.first[1:]
        _, once = following.apply(variables, jax.lax.stop_gradient(x), train=True)
        y, twice = following.apply({**variables, "batch_stats": once}, x, train=True, remat=remat)
        return y, statistics | twice


def second_paths(name: str) -> tuple[str, str]:
    """The paths of a module's blocks: parameters and batch statistics."""
    return f"{name}/params/blocks", f"{name}/batch_stats/blocks"
