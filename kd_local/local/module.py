"""One module of a cut network: context networks, blocks, auxiliary network and loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import Metrics
from kd_local.local.auxiliary import Apply, Auxiliary, Branch, HasFeatures, UntrainedPart
from kd_local.local.contexts import supply
from kd_local.local.decoders import Decoder, PixelScale, reconstruction_loss
from kd_local.local.losses import LocalLoss
from kd_local.local.similarity import SimilarityNetwork, predsim
from kd_local.networks import Collection, Network, Variables, apply_block, by_block, init_block, of_block, output_shape
from kd_local.rematerialization import rematerialize


@dataclass(frozen=True)
class Reconstruction:
    """A module's decoder and its target, the images.

    Attributes:
        decoder: reconstructs the images from the module's output.
        pixels: the normalisation of the images.
        position: index of the images among the tensors that the module reads.
    """

    decoder: Decoder
    pixels: PixelScale
    position: int


@dataclass(frozen=True)
class LocalModule:
    """One module of a cut network: context networks, blocks, auxiliary network and loss.

    The fields up to `channels_at_once` determine the computation. The fields from `name` on describe the module's
    position, and equality ignores them, so that modules with the same computation share an executable.

    Attributes:
        blocks: the module's blocks, named "0", "1", ...
        contexts: one context network for each context.
        auxiliary: what the module's output passes through on its way to the loss; None for the last module, whose
            output is the logits.
        loss: the loss of the auxiliary network's outputs, or of the last module's logits.
        classifies: True if the loss is computed on logits.
        similarity: the network of PredSim's similarity loss, which is added to a loss of logits; or None.
        reconstruction: the decoder, or None.
        branch: the auxiliary network inside the last module, or None. Its `end` counts the module's blocks.
        writes_input: True if later modules read the module's input, with its contexts added, as a context.
        remat: the names of `REMATERIALIZABLE` that the backward pass recomputes. Blocks are recomputed one by one.
        channels_at_once: the most output channels of a context network that are recomputed at a time.
        name: such as `module03`.
        names: the blocks' names in the network.
        reads: names of the input, of the contexts, and of the images if only the decoder needs them.
        writes: names of the output and, with `writes_input`, of the input. The last module writes nothing.
        weights: the weights of reconstruction and head in the loss; empty without a decoder.
        targets: names of the tensors that the loss reads after the labels, see `TargetRule`.
        frozen: paths of the subtrees of the state that the auxiliary network reads, see `kd_local.contract.subtree`.
        after: the untrained parts of the state that are updated after the module has used them.
    """

    blocks: Network
    contexts: tuple[nn.Module, ...]
    auxiliary: Auxiliary | None
    loss: LocalLoss
    classifies: bool
    similarity: SimilarityNetwork | None
    reconstruction: Reconstruction | None
    branch: Branch | None
    writes_input: bool
    remat: tuple[str, ...]
    channels_at_once: int
    name: str = field(compare=False)
    names: tuple[str, ...] = field(compare=False)
    reads: tuple[str, ...] = field(compare=False)
    writes: tuple[str, ...] = field(compare=False)
    weights: tuple[float, ...] = field(compare=False)
    targets: tuple[str, ...] = field(compare=False)
    frozen: tuple[str, ...] = field(compare=False)
    after: tuple[UntrainedPart, ...] = field(compare=False)

    @property
    def takes_tokens(self) -> bool:
        """True if the features may be sequences with class tokens.

        An auxiliary network that takes them has the attribute `takes_tokens = True`. Contexts, decoders and PredSim's
        loss need maps.
        """
        needs_maps = self.contexts or self.reconstruction is not None or self.similarity is not None
        used = (self.auxiliary, self.branch.auxiliary if self.branch is not None else None)
        return not needs_maps and all(one is None or getattr(one, "takes_tokens", False) for one in used)

    def init(self, rng: PRNGKeyArray, tensors: Sequence[Any]) -> Variables:
        """New variables.

        Args:
            rng: a key.
            tensors: the tensors of `reads`, or their `jax.ShapeDtypeStruct`s. Only shapes and dtypes matter.
        """
        blocks_rng, auxiliary_rng, decoder_rng, *context_rngs = jax.random.split(rng, 3 + len(self.contexts))
        x, *contexts = tensors[: 1 + len(self.contexts)]
        created: dict[str, Mapping[str, Any]] = {"blocks": self.blocks.init(blocks_rng, x)}
        for i, (network, context, key) in enumerate(zip(self.contexts, contexts, context_rngs, strict=True)):
            created[f"context{i}"] = init_block(network, key, context, x)
        output = x
        for i, (name, block) in enumerate(self.blocks, start=1):
            output = output_shape(block, of_block(created["blocks"], name), output)
            if self.branch is not None and i == self.branch.end:
                created.update(self.branch.auxiliary.init(auxiliary_rng, output))
        if self.auxiliary is not None:
            created.update(self.auxiliary.init(auxiliary_rng, output))
        if self.similarity is not None:
            created["similarity"] = init_block(self.similarity, jax.random.fold_in(auxiliary_rng, 1), output)
        if self.reconstruction is not None:
            images = tensors[self.reconstruction.position]
            if isinstance(self.auxiliary, HasFeatures):
                output = self.auxiliary.features(created, output)
            created["decoder"] = init_block(self.reconstruction.decoder, decoder_rng, output, images)
        return by_block(created)

    def apply(self, variables: Variables, tensors: Sequence[Array], *, train: bool) -> tuple[Array, Array, Collection]:
        """Applies context networks and blocks, without auxiliary network and decoder.

        Args:
            variables: from `init`.
            tensors: the tensors of `reads`.
            train: if True, batch normalisation uses the batch's statistics and updates the running ones.

        Returns:
            `(input with contexts added, output, batch statistics)`.
        """
        inputs, *_, output, statistics = self._apply(variables, tensors, train=train)
        return inputs, output, statistics

    def _apply(
        self, variables: Variables, tensors: Sequence[Array], *, train: bool
    ) -> tuple[Array, Array | None, Array, Collection]:
        """`apply`, and before the output the input of the branch."""
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
        blocks, output, at_branch = of_block(variables, "blocks"), inputs, None
        of_blocks: Collection = {}
        ends = [len(self.blocks)] if self.branch is None else sorted({self.branch.end, len(self.blocks)})
        for start, end in pairwise([0, *ends]):
            some = self.blocks[start:end]
            output, updated = some.apply(some.select(blocks), output, train=train, remat="blocks" in self.remat)
            of_blocks = {**of_blocks, **updated}
            if self.branch is not None and end == self.branch.end:
                at_branch = output
        if of_blocks:
            statistics["blocks"] = of_blocks
        return inputs, at_branch, output, statistics

    def shapes(self, variables: Variables, tensors: Sequence[Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and dtypes of the tensors of `writes`. Equal modules with tensors of equal shapes are traced once."""
        return self.written(*_evaluated.eval_shape(self, variables, tuple(tensors)))

    def output_shape(self, variables: Variables, tensors: Sequence[Any]) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the module's output."""
        return _evaluated.eval_shape(self, variables, tuple(tensors))[1]

    def outputs(self, variables: Variables, output: Array, frozen: tuple[Any, ...] = ()) -> Array:
        """The auxiliary network's outputs for the module's output, in evaluation mode; for the last module the latter.

        Args:
            variables: from `init`.
            output: the module's output.
            frozen: the subtrees of `frozen`.
        """
        if self.auxiliary is None:
            return output
        return self.auxiliary(network_application(variables, {}, train=False), output, frozen)[1]

    def evaluate(
        self,
        variables: Variables,
        tensors: Sequence[Array],
        labels: Int[Array, " batch"],
        targets: Sequence[Array] = (),
        *,
        train: bool,
        weights: Sequence[float] | Float[Array, " n"] | None = None,
        frozen: tuple[Any, ...] = (),
    ) -> tuple[Metrics, tuple[Array, ...], Array, Collection]:
        """Applies the whole module and computes its loss.

        Args:
            variables: from `init`.
            tensors: the tensors of `reads`.
            labels: in [0, classes).
            targets: the tensors of `targets`.
            train: if True, batch normalisation uses the batch's statistics and updates the running ones.
            weights: replaces the module's `weights`, so that modules that differ only in them share an executable.
            frozen: the subtrees of `frozen`.

        Returns:
            `(metrics, written, output, batch statistics)`. The metrics contain `loss`; `written` are the tensors of
            `writes`.
        """
        x, at_branch, output, statistics = self._apply(variables, tensors, train=train)
        frozen = jax.lax.stop_gradient(frozen)
        apply = network_application(variables, statistics, train=train, remat=self.remat)
        features = outputs = output
        if self.auxiliary is not None:
            features, outputs = self.auxiliary(apply, output, frozen)
        metrics = self.loss(outputs, labels, *targets)
        if self.branch is not None and at_branch is not None:
            of_branch = self.loss(self.branch.auxiliary(apply, at_branch, frozen)[1], labels, *targets)
            named = {f"{self.branch.name}_{name}": value for name, value in of_branch.items()}
            metrics = {**named, **metrics, "loss": of_branch["loss"] + metrics["loss"]}
        if self.similarity is not None:
            projected = apply("similarity", self.similarity, features)
            metrics = predsim(metrics, projected, labels, outputs.shape[-1])
        if self.reconstruction is not None:
            images = tensors[self.reconstruction.position]
            logits = apply("decoder", self.reconstruction.decoder, features, images)
            reconstruction = reconstruction_loss(logits, self.reconstruction.pixels.restore(images))
            of_decoder, of_head = jnp.asarray(self.weights if weights is None else weights, reconstruction.dtype)
            head_loss = metrics["loss"]
            loss = of_decoder * reconstruction + of_head * head_loss.astype(reconstruction.dtype)
            metrics = {**metrics, "loss": loss, "head_loss": head_loss, "reconstruction_loss": reconstruction}
        return metrics, self.written(x, output), output, statistics

    def written(self, inputs: Any, output: Any) -> tuple[Any, ...]:
        """The tensors of `writes`."""
        return (output, inputs)[: len(self.writes)]


def network_application(
    variables: Variables, statistics: Collection, *, train: bool, remat: tuple[str, ...] = ()
) -> Apply:
    """See `Apply`. New batch statistics are added to `statistics`. All networks but the decoder count as `head`.

    Args:
        variables: those of the module.
        statistics: the dict that receives new batch statistics by the networks' names.
        train: if True, batch normalisation uses the batch's statistics and updates the running ones.
        remat: the names of `REMATERIALIZABLE` that the backward pass recomputes.
    """

    def apply(name: str, network: nn.Module, *inputs: Any, params: Any = None) -> Array:
        own = of_block(variables, name)
        if params is not None:
            own = {**own, "params": params}
        call = partial(apply_block, network, train=train)
        recomputed = ("decoder" if name == "decoder" else "head") in remat
        output, updated = (rematerialize(call) if recomputed else call)(own, *inputs)
        if updated:
            statistics[name] = updated
        return output

    return apply


@partial(jax.jit, static_argnums=0)
def _evaluated(module: LocalModule, variables: Variables, tensors: tuple[Array, ...]) -> tuple[Array, Array]:
    return module.apply(variables, tensors, train=False)[:2]
