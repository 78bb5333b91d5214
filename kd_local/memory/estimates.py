"""Estimates the memory that a module of a cut network needs, from shapes only; nothing is compiled.

Besides the state of all modules, a module needs its tensors and temporary memory. The temporary memory is estimated as
the activations that gradients save up to a layer, plus two tensors of the size of the largest activation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import ShapeDtypeStruct as Shape
from jaxtyping import Array

from kd_local.costs import tree_bytes
from kd_local.local import ContSup, LocalModule
from kd_local.local.auxiliaries.head import Head
from kd_local.local.contexts import IMAGES
from kd_local.networks import Network, apply_block, by_block, init_block
from kd_local.state import new_part


@dataclass(frozen=True)
class ModuleKind:
    """The properties of a module that determine its memory. Modules of the same kind need the same memory.

    Attributes:
        position: the module's number; modules with all contexts share the number of the first of them; -1 for the last
            module.
        blocks: a number for each block of the module; equal blocks with equal inputs have equal numbers.
        sources: inputs of earlier modules that can be its contexts, the most recent first.
    """

    position: int
    blocks: tuple[int, ...]
    sources: tuple[Shape, ...]


@dataclass(frozen=True)
class Estimate:
    """Estimated bytes of one device for a module.

    Attributes:
        need: the module's tensors and temporary memory, without the state of any module.
        state: parameters, statistics and optimizer state of the module's head, decoder and context networks.
    """

    need: int
    state: int


class Estimates:
    """Estimates for every module that any cut of a network can have.

    Args:
        method: a method for one cut of the network. Heads, decoders and context networks are the same for other cuts.
        network: the network that is cut.
        shape: height, width and channels of the images.
        batch: images of a step on one device.

    Attributes:
        state: bytes of the state of all blocks.

    Raises:
        ValueError: a module has an auxiliary network other than a head.
    """

    def __init__(self, method: ContSup, network: Network, shape: tuple[int, int, int], batch: int) -> None:
        self.network = network
        self.of = cache(self._of)
        self._modules = method.cut_network.modules
        for module in self._modules[:-1]:
            if not isinstance(module.auxiliary, Head):
                raise ValueError(
                    f"the auxiliary network of {module.name} ({type(module.auxiliary).__name__}) depends on the "
                    "boundaries, so its memory cannot be estimated for others: name the boundaries, use equal layers, "
                    "or a head alone"
                )
        self._layer = cache(partial(_layer, method.optimizer))
        x = Shape((batch, *shape), jnp.float32)
        numbers: dict[tuple[nn.Module, Shape], int] = {}
        blocks = []
        self.state = 0
        self._inputs = []
        for block in network.modules:
            self._inputs.append(x)
            blocks.append(numbers.setdefault((block, x), len(numbers)))
            layer = self._layer(block, x)
            self.state += layer.state
            x = layer.output
        self._blocks = tuple(blocks)
        self._numbered = tuple(numbers)

    @cached_property
    def _recent(self) -> int:
        return max(len(_recent(module)) for module in self._modules)

    def kind(self, number: int, start: int, end: int, sources: tuple[Shape, ...]) -> ModuleKind:
        """The kind of module `number` with the blocks `start` to `end - 1`."""
        last = end == len(self.network)
        return ModuleKind(-1 if last else min(number, self._recent + 1), self._blocks[start:end], sources)

    def next_sources(self, sources: tuple[Shape, ...], start: int) -> tuple[Shape, ...]:
        """The sources of a module, if the module before it has the sources `sources` and starts at block `start`."""
        return (self._inputs[start], *sources)[: self._recent]

    def kinds(self, boundaries: Sequence[str]) -> list[ModuleKind]:
        """The kinds of the modules between these boundaries, in order."""
        ends = [self.network.position(name) + 1 for name in boundaries]
        kinds = []
        sources: tuple[Shape, ...] = ()
        for number, (start, end) in enumerate(zip([0, *ends], [*ends, len(self.network)], strict=True)):
            kinds.append(self.kind(number, start, end, sources))
            sources = self.next_sources(sources, start)
        return kinds

    def _of(self, kind: ModuleKind) -> Estimate:
        """The estimate for a kind of module, computed once."""
        module = self._modules[kind.position]
        inputs = [self._numbered[block][1] for block in kind.blocks]
        blocks = [self._layer(*self._numbered[block]) for block in kind.blocks]
        x, output, images = inputs[0], blocks[-1].output, self._inputs[0]
        read = dict.fromkeys(module.reads, images)
        read.update({module.reads[0]: x}, **dict(zip(_recent(module), kind.sources, strict=False)))
        contexts = [
            self._layer(network, read[name], x)
            for network, name in zip(module.contexts, module.reads[1:], strict=False)
        ]
        head = [self._layer(module.auxiliary.network, output)] if isinstance(module.auxiliary, Head) else []
        reconstruction = module.reconstruction
        decoder = [] if reconstruction is None else [self._layer(reconstruction.decoder, output, images)]
        saved = temporary = 0
        for name, layers in {"contexts": contexts, "blocks": blocks, "head": head, "decoder": decoder}.items():
            for i, layer in enumerate(layers):
                temporary = max(temporary, saved + layer.saved + 2 * layer.largest)
                if name not in module.remat:
                    saved += layer.saved
                elif name == "blocks" and i:
                    saved += tree_bytes(inputs[i])
        tensors = [*read.values(), *(output, x)[: len(module.writes)]]
        state = sum(layer.state for layer in (*contexts, *head, *decoder))
        return Estimate(tree_bytes(tensors) + temporary, state)


@dataclass(frozen=True)
class _Layer:
    """Bytes of a block, a head, a decoder or a context network.

    Attributes:
        saved: activations that the layer's gradient saves.
        largest: the largest of these activations.
        state: parameters, statistics and optimizer state.
        output: the shape of the output.
    """

    saved: int
    largest: int
    state: int
    output: Shape


def _layer(optimizer: optax.GradientTransformation, module: nn.Module, *inputs: Shape) -> _Layer:
    def forward(variables: Any, *inputs: Array) -> Array:
        return apply_block(module, variables, *inputs, train=True)[0]

    def gradient(variables: Any, *inputs: Array) -> tuple[Array, list[Array]]:
        output, backward = jax.vjp(forward, variables, *inputs)
        return output, list({id(leaf): leaf for leaf in jax.tree.leaves(backward)}.values())

    variables = jax.eval_shape(partial(init_block, module), jax.eval_shape(lambda: jax.random.key(0)), *inputs)
    state = jax.eval_shape(lambda variables: new_part(by_block({"": variables}), optimizer), variables)
    output, saved = jax.eval_shape(gradient, variables, *inputs)
    # Saved parameters are left out: they have no batch.
    sizes = [tree_bytes(leaf) for leaf in saved if leaf.shape[:1] == inputs[0].shape[:1]]
    return _Layer(sum(sizes), max(sizes, default=0), tree_bytes(state), output)


def _recent(module: LocalModule) -> tuple[str, ...]:
    """The contexts of a module that are inputs of earlier modules, the most recent first."""
    return tuple(name for name in module.reads[1 : 1 + len(module.contexts)] if name != IMAGES)
