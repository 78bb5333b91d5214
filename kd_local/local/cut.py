"""A network cut into gradient-isolated modules: what each is made of, and the whole of it as plain functions.

`CutNetwork.losses` is the reference form of local learning: in one function, with `jax.lax.stop_gradient` at every cut.
Its gradients are what every faster form must equal; its memory under `jax.jit` is not what local learning promises,
since XLA schedules the whole as it likes. Training goes through `ContSup`, one compiled step a module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import Metrics
from kd_local.errors import unknown
from kd_local.local.contexts import IMAGES, Context, features, supplied
from kd_local.local.heads import LocalHead, local_head
from kd_local.local.losses import LocalLoss, local_loss
from kd_local.local.partition import RULES, check_boundaries, equal_layers
from kd_local.models.layers import DType
from kd_local.networks import Collection, Network, Variables, apply_block, init_block

Boundaries = Literal["equal"] | Sequence[str]


@dataclass(frozen=True)
class LocalModule:
    """One module of a cut network: its context networks, its blocks, its local head and loss.

    Modules that compute the same function are equal, wherever they stand: the fields that say where do not count.

    Attributes:
        blocks: its blocks, named "0", "1", ...
        contexts: its context networks, one for each tensor of context.
        head: its local head; None for the last module, whose own output is the logits.
        loss: of the head's output, or of the logits.
        supplies: whether its input, contexts added, is handed on as context of later modules.
        name: such as `module03`.
        names: its blocks' names in the network.
        reads: names of its input and of its contexts.
        writes: names of its output, and of its input where it supplies that; the last module writes nothing.
    """

    blocks: Network
    contexts: tuple[nn.Module, ...]
    head: LocalHead | None
    loss: LocalLoss
    supplies: bool
    name: str = field(compare=False)
    names: tuple[str, ...] = field(compare=False)
    reads: tuple[str, ...] = field(compare=False)
    writes: tuple[str, ...] = field(compare=False)

    def init(self, rng: PRNGKeyArray, tensors: Sequence[Any]) -> Variables:
        """Fresh variables, given its input and contexts, or their shapes."""
        blocks_rng, head_rng, *context_rngs = jax.random.split(rng, 2 + len(self.contexts))
        x, *contexts = tensors
        parts: dict[str, Mapping[str, Any]] = {"blocks": self.blocks.init(blocks_rng, x)}
        for i, (network, context, key) in enumerate(zip(self.contexts, contexts, context_rngs, strict=True)):
            parts[f"context{i}"] = init_block(network, key, context, x)
        if self.head is not None:
            output = jax.eval_shape(partial(self.blocks.apply, train=False), parts["blocks"], x)[0]
            parts["head"] = init_block(self.head, head_rng, output)
        return {
            collection: {name: part[collection] for name, part in parts.items() if collection in part}
            for collection in ("params", "batch_stats")
        }

    def apply(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        x: Float[Array, "batch *shape"],
        contexts: Sequence[Float[Array, "batch ..."]],
        *,
        train: bool,
    ) -> tuple[Array, Array, Collection]:
        """Its input with the contexts added, its output, and the statistics behind them (the head's not touched)."""
        statistics: Collection = dict(variables["batch_stats"])
        supply = x
        for i, (network, context) in enumerate(zip(self.contexts, contexts, strict=True)):
            added = _apply(network, variables, f"context{i}", statistics, (context, x), train)
            supply = supply + added
        blocks = {collection: entries["blocks"] for collection, entries in variables.items() if "blocks" in entries}
        output, updated = self.blocks.apply(blocks, supply, train=train)
        if updated:
            statistics["blocks"] = updated
        return supply, output, statistics

    def evaluate(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        tensors: Sequence[Array],
        labels: Int[Array, " batch"],
        *,
        train: bool,
    ) -> tuple[Metrics, tuple[Array, ...], Array, Collection]:
        """Its metrics (`loss` first of all), the tensors it hands on, its output, and the statistics behind them."""
        x, *contexts = tensors
        supply, output, statistics = self.apply(variables, x, contexts, train=train)
        outputs = output
        if self.head is not None:
            outputs = _apply(self.head, variables, "head", statistics, (output,), train)
        return self.loss(outputs, labels), self.hand_on(supply, output), output, statistics

    def hand_on(self, supply: Any, output: Any) -> tuple[Any, ...]:
        """The tensors of `writes`."""
        return (output, supply)[: len(self.writes)]


class LocalOutputs(NamedTuple):
    """What the reference form gives.

    Attributes:
        losses: each module's own loss, by its name; the last is the cross entropy of the logits.
        logits: of the last module.
        batch_stats: the updated statistics of each module.
    """

    losses: dict[str, Float[Array, ""]]
    logits: Float[Array, "batch classes"]
    batch_stats: dict[str, Collection]


@dataclass(frozen=True)
class CutNetwork:
    """A network cut into modules. Make one with `cut`.

    Variables of it are a mapping from module names to that module's variables.
    """

    network: Network
    boundaries: tuple[str, ...]
    modules: tuple[LocalModule, ...]

    def init(
        self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct
    ) -> dict[str, Variables]:
        """Fresh variables of every module; of `images` only shape and dtype count."""
        tensors: dict[str, Any] = {IMAGES: jax.ShapeDtypeStruct(images.shape, images.dtype)}
        variables = {}
        for module, key in zip(self.modules, jax.random.split(rng, len(self.modules)), strict=True):
            x, *contexts = (tensors[name] for name in module.reads)
            variables[module.name] = module.init(key, (x, *contexts))
            supply, output, _ = jax.eval_shape(partial(module.apply, train=False), variables[module.name], x, contexts)
            tensors.update(zip(module.writes, module.hand_on(supply, output), strict=True))
        return variables

    def logits(
        self, variables: Mapping[str, Mapping[str, Any]], images: Float[Array, "batch h w c"]
    ) -> Float[Array, "batch classes"]:
        """What is deployed, in evaluation mode: blocks and context networks, no local heads."""
        tensors: dict[str, Array] = {IMAGES: images}
        output = images
        for module in self.modules:
            x, *contexts = (tensors[name] for name in module.reads)
            supply, output, _ = module.apply(variables[module.name], x, contexts, train=False)
            tensors.update(zip(module.writes, module.hand_on(supply, output), strict=True))
        return output

    def losses(
        self,
        variables: Mapping[str, Mapping[str, Any]],
        images: Float[Array, "batch h w c"],
        labels: Int[Array, " batch"],
        *,
        train: bool = True,
    ) -> LocalOutputs:
        """Every module's loss in one function, gradients cut between modules: the reference form.

        Args:
            variables: from `init`.
            images: normalised.
            labels: in [0, classes).
            train: whether batch normalisation uses, and updates, the batch's statistics.
        """
        tensors: dict[str, Array] = {IMAGES: images}
        losses, statistics, output = {}, {}, images
        for module in self.modules:
            read = tuple(tensors[name] for name in module.reads)
            metrics, written, output, statistics[module.name] = module.evaluate(
                variables[module.name], read, labels, train=train
            )
            losses[module.name] = metrics["loss"]
            tensors.update(zip(module.writes, map(jax.lax.stop_gradient, written), strict=True))
        return LocalOutputs(losses, output, statistics)


def cut(
    network: Network,
    modules: int | None = None,
    *,
    classes: int,
    boundaries: Boundaries = "equal",
    context: str = "R1E",
    head: str = "1c2f",
    loss: str = "softmax",
    dtype: DType = None,
) -> CutNetwork:
    """Cut a network into gradient-isolated modules.

    Args:
        network: the last block gives the logits.
        modules: how many; with named boundaries it may be left out.
        classes: outputs of the local heads.
        boundaries: `equal` numbers of layers, or the names of the blocks behind which to cut.
        context: R0, E, R1, R1E, or Rn / RnE.
        head: a local head, 0c1f, 0c2f, 1c1f, 1c2f, 1c3f or 2c2f.
        loss: a local loss, softmax.
        dtype: compute dtype of heads and context networks, as of the network.

    Raises:
        ValueError: any of these is unknown or out of range.

    Reference: Yu et al., arXiv 2312.07636.
    """
    if isinstance(boundaries, str):
        if boundaries not in RULES:
            raise unknown("rule for boundaries", boundaries, RULES)
        if modules is None:
            raise ValueError("the number of modules is missing: give modules, or boundaries by name")
        boundaries = equal_layers(network, modules)
    boundaries = check_boundaries(network, boundaries)
    count = len(boundaries) + 1
    if modules is not None and modules != count:
        raise ValueError(
            f"{modules} modules, but {len(boundaries)} boundaries ({', '.join(boundaries)}), which make {count}: "
            f"give {modules - 1} boundaries, or modules={count}"
        )
    supply = Context.parse(context)
    needed = {source for module in range(count) for source in supply.sources(module)}
    local = local_head(head, outputs=classes, dtype=dtype)
    ends = [network.position(name) + 1 for name in boundaries]
    digits = max(2, len(str(count - 1)))
    pieces = []
    for i, (start, end) in enumerate(zip([0, *ends], [*ends, len(network)], strict=True)):
        last = i == count - 1
        supplies = supplied(i) in needed
        pieces.append(
            LocalModule(
                blocks=Network(tuple(str(j) for j in range(end - start)), network.modules[start:end]),
                contexts=supply.networks(i, dtype=dtype),
                head=None if last else local,
                loss=local_loss("softmax") if last else local_loss(loss),
                supplies=supplies,
                name=f"module{i:0{digits}d}",
                names=network.names[start:end],
                reads=(features(i - 1) if i else IMAGES, *supply.sources(i)),
                writes=() if last else (features(i), supplied(i)) if supplies else (features(i),),
            )
        )
    return CutNetwork(network, boundaries, tuple(pieces))


def _apply(
    module: nn.Module,
    variables: Mapping[str, Mapping[str, Any]],
    name: str,
    statistics: Collection,
    inputs: tuple[Array, ...],
    train: bool,
) -> Array:
    own = {collection: entries[name] for collection, entries in variables.items() if name in entries}
    output, updated = apply_block(module, own, *inputs, train=train)
    if updated:
        statistics[name] = updated
    return output
