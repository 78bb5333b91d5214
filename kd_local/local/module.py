"""One module of a cut network: its blocks, what it is supplied with, and what it is trained by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import Metrics
from kd_local.local.contexts import supply
from kd_local.local.decoders import Decoder, PixelScale, reconstruction_loss
from kd_local.local.heads import LocalHead
from kd_local.local.losses import LocalLoss
from kd_local.networks import Collection, Network, Variables, apply_block, by_block, init_block, of_block
from kd_local.rematerialization import rematerialize

REMATERIALIZABLE: tuple[str, ...] = ("blocks", "contexts", "head", "decoder")
"""What of a module can be rematerialised: computed again for its gradient instead of kept."""


@dataclass(frozen=True)
class Reconstruction:
    """What a module's decoder reconstructs.

    Attributes:
        decoder: reads the module's output.
        pixels: how the images were normalised.
        position: of the images among the tensors that the module reads.
    """

    decoder: Decoder
    pixels: PixelScale
    position: int


@dataclass(frozen=True)
class LocalModule:
    """One module of a cut network: its context networks, its blocks, its local head and loss.

    Modules that compute the same function are equal, wherever they stand: the fields that say where do not count.

    Attributes:
        blocks: its blocks, named "0", "1", ...
        contexts: its context networks, one for each tensor of context.
        head: its local head; None for the last module, whose own output is the logits.
        loss: of the head's output, or of the logits.
        classifies: whether what the loss is taken of are logits.
        reconstruction: by its decoder, if it has one.
        writes_input: True if later modules read its input, contexts added, as context.
        remat: those of `REMATERIALIZABLE` that are computed again for their gradients; of blocks, each by itself.
        channels_at_once: of a context network, when it is computed again.
        name: such as `module03`.
        names: its blocks' names in the network.
        reads: names of its input, of its contexts, and of the images if the decoder alone needs them.
        writes: names of its output, and of its input with `writes_input`; the last module writes nothing.
        weights: of reconstruction and head in the loss; empty without a decoder.
    """

    blocks: Network
    contexts: tuple[nn.Module, ...]
    head: LocalHead | None
    loss: LocalLoss
    classifies: bool
    reconstruction: Reconstruction | None
    writes_input: bool
    remat: tuple[str, ...]
    channels_at_once: int
    name: str = field(compare=False)
    names: tuple[str, ...] = field(compare=False)
    reads: tuple[str, ...] = field(compare=False)
    writes: tuple[str, ...] = field(compare=False)
    weights: tuple[float, ...] = field(compare=False)

    def init(self, rng: PRNGKeyArray, tensors: Sequence[Any]) -> Variables:
        """Fresh variables, given the tensors that it reads, or their shapes."""
        blocks_rng, head_rng, decoder_rng, *context_rngs = jax.random.split(rng, 3 + len(self.contexts))
        x, *contexts = tensors[: 1 + len(self.contexts)]
        parts: dict[str, Mapping[str, Any]] = {"blocks": self.blocks.init(blocks_rng, x)}
        for i, (network, context, key) in enumerate(zip(self.contexts, contexts, context_rngs, strict=True)):
            parts[f"context{i}"] = init_block(network, key, context, x)
        output = jax.eval_shape(partial(self.blocks.apply, train=False), parts["blocks"], x)[0]
        if self.head is not None:
            parts["head"] = init_block(self.head, head_rng, output)
        if self.reconstruction is not None:
            images = tensors[self.reconstruction.position]
            parts["decoder"] = init_block(self.reconstruction.decoder, decoder_rng, output, images)
        return by_block(parts)

    def apply(self, variables: Variables, tensors: Sequence[Array], *, train: bool) -> tuple[Array, Array, Collection]:
        """What is deployed of it: its input with the contexts added, its output, and the statistics behind them.

        Args:
            variables: from `init`.
            tensors: those that it reads.
            train: whether batch normalisation uses, and updates, the batch's statistics.
        """
        statistics: Collection = dict(variables["batch_stats"])
        inputs = x = tensors[0]
        names = [f"context{i}" for i in range(len(self.contexts))]
        own = [of_block(variables, name) for name in names]
        contexts = tensors[1 : 1 + len(names)]
        remat = self.channels_at_once if "contexts" in self.remat else None
        results = supply(self.contexts, own, contexts, x, train=train, remat=remat)
        for name, (context, updated) in zip(names, results, strict=True):
            inputs = inputs + context
            statistics[name] = updated
        blocks = of_block(variables, "blocks")
        output, updated = self.blocks.apply(blocks, inputs, train=train, remat="blocks" in self.remat)
        if updated:
            statistics["blocks"] = updated
        return inputs, output, statistics

    def answer(self, variables: Variables, output: Array) -> Array:
        """Its head's answer to its output, in evaluation mode; of the last module the output itself."""
        return output if self.head is None else self._call(self.head, variables, "head", {}, (output,), train=False)

    def evaluate(
        self,
        variables: Variables,
        tensors: Sequence[Array],
        labels: Int[Array, " batch"],
        *,
        train: bool,
        weights: Sequence[float] | Float[Array, " n"] | None = None,
    ) -> tuple[Metrics, tuple[Array, ...], Array, Collection]:
        """Its metrics (`loss` first of all), the tensors it hands on, its output, and the statistics behind them.

        `weights` stands for its own, so that modules which differ in them only can share an executable.
        """
        x, output, statistics = self.apply(variables, tensors, train=train)
        outputs = output
        if self.head is not None:
            outputs = self._call(self.head, variables, "head", statistics, (output,), train)
        metrics = self.loss(outputs, labels)
        if self.reconstruction is not None:
            images = tensors[self.reconstruction.position]
            inputs = (output, images)
            logits = self._call(self.reconstruction.decoder, variables, "decoder", statistics, inputs, train)
            reconstruction = reconstruction_loss(logits, self.reconstruction.pixels.restore(images))
            of_decoder, of_head = jnp.asarray(self.weights if weights is None else weights, reconstruction.dtype)
            head_loss = metrics["loss"]
            loss = of_decoder * reconstruction + of_head * head_loss.astype(reconstruction.dtype)
            metrics = {**metrics, "loss": loss, "head_loss": head_loss, "reconstruction_loss": reconstruction}
        return metrics, self.written(x, output), output, statistics

    def written(self, inputs: Any, output: Any) -> tuple[Any, ...]:
        """The tensors of `writes`."""
        return (output, inputs)[: len(self.writes)]

    def _call(
        self,
        module: nn.Module,
        variables: Variables,
        name: str,
        statistics: Collection,
        inputs: tuple[Array, ...],
        train: bool,
    ) -> Array:
        """The output of one of its parts, whose statistics are put among the others'."""
        call = partial(apply_block, module, train=train)
        output, updated = (rematerialize(call) if name in self.remat else call)(of_block(variables, name), *inputs)
        if updated:
            statistics[name] = updated
        return output
