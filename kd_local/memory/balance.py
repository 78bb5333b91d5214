"""Cuts that balance: the boundaries with which a step's peak, as its executables tell it, is lowest.

A peak is the state of all modules plus what the largest of them needs besides. What a module needs depends on its own
blocks and on the shapes of what it is supplied with, so dynamic programming over the blocks finds the best cut, given
what every possible module needs. There are far too many of these to compile. So the search begins with estimates that
need no compilation, measures the modules of the cut that looks best, learns from them how far the estimates are off,
and looks again, until no other cut promises to be better. What it gives was measured as a whole.

Not optimal yet: an estimate that is too high can hide the best cut.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import ShapeDtypeStruct as Shape
from jaxtyping import Array

from kd_local.local import ContSup, LocalModule, equal_layers
from kd_local.local.contexts import IMAGES
from kd_local.memory.compilations import CompilationRecords
from kd_local.memory.footprint import PieceFootprint, piece_footprints, plan_for
from kd_local.memory.targets import Target
from kd_local.networks import Network, apply_block, by_block, init_block
from kd_local.sizes import tree_bytes
from kd_local.state import new_part

COMPILATIONS = 40
NEAR = 1.25
"""Up to how many times what is enough an estimate may be for a cut to be worth measuring."""

Make = Callable[[Sequence[str]], ContSup]
"""A method whose network is cut behind the blocks of these names."""


@dataclass(frozen=True)
class MeasuredCut:
    """Boundaries, and what a step needs with them.

    Attributes:
        boundaries: names of the blocks behind which the network is cut.
        pieces: what the step of each module needs.
    """

    boundaries: tuple[str, ...]
    pieces: tuple[PieceFootprint, ...]

    @property
    def largest(self) -> PieceFootprint:
        """The piece during which most is needed."""
        return max(self.pieces, key=lambda piece: piece.peak)

    @property
    def peak_bytes(self) -> int:
        """While the largest piece runs."""
        return self.largest.peak


def balance(
    make: Make,
    network: Network,
    modules: int,
    shape: tuple[int, int, int],
    batch: int,
    target: Target,
    *,
    records: CompilationRecords | None = None,
    compilations: int = COMPILATIONS,
    enough: int | None = None,
) -> MeasuredCut:
    """The cut of a network into so many modules with the lowest peak that was found (see `footprint`).

    It is never worse than that of equal layers, which is measured first. The same arguments give the same boundaries,
    whatever was measured before.

    Args:
        make: gives the method for boundaries, all else the same.
        network: the one that it cuts.
        modules: how many.
        shape: height, width and channels of the images (float32).
        batch: images of a step, over all devices of the target.
        target: where.
        records: compilations that are known already; new ones are added.
        compilations: different modules to measure at most, besides those of the cut of equal layers.
        enough: a number of bytes: the search ends with the first cut that needs no more, and where no cut is estimated
            to come near.

    Raises:
        ValueError: fewer than one module or more than the network has blocks, fewer than one image, or a negative
            number of compilations.
    """
    if compilations < 0:
        raise ValueError(f"compilations is {compilations}: use 0, which keeps the cut of equal layers, or more")
    known = CompilationRecords() if records is None else records
    boundaries = equal_layers(network, modules)
    method = make(boundaries)
    calls = plan_for(method, shape, batch, target.mesh).calls
    found = {call.signature: call for call in calls}
    measured = {signature: known.of(call, target) for signature, call in found.items()}
    best = MeasuredCut(boundaries, piece_footprints(calls, measured))
    limit = len(measured) + compilations
    needs = _Needs(method, network, shape, max(1, batch // target.mesh.size))
    for key, piece in zip(needs.keys(boundaries), best.pieces, strict=True):
        needs.learn(key, piece)
    seen = {boundaries}
    while enough is None or best.peak_bytes > enough:
        bound = best.peak_bytes if enough is None else min(best.peak_bytes, int(NEAR * enough))
        promising = needs.cheapest(modules, bound)
        if promising is None or promising in seen:
            break
        seen.add(promising)
        calls, keys = plan_for(make(promising), shape, batch, target.mesh).calls, needs.keys(promising)
        # The largest first: where it is too large by itself, the others need not be compiled.
        for call, key in sorted(zip(calls, keys, strict=True), key=lambda pair: needs.of(pair[1]), reverse=True):
            if call.signature not in measured:
                if len(measured) == limit:
                    return best
                measured[call.signature] = known.of(call, target)
            needs.learn(key, piece_footprints([call], measured)[0])
            if needs.of(key) + needs.state(keys) >= best.peak_bytes:
                break
        else:
            cut = MeasuredCut(promising, piece_footprints(calls, measured))
            best = min(best, cut, key=lambda cut: cut.peak_bytes)
    return best


@dataclass(frozen=True)
class _Key:
    """What decides what a module needs: modules with equal keys need the same.

    Attributes:
        kind: its number, as far as that decides which contexts it has; -1 for the last.
        blocks: its blocks with their inputs, each as the number of its kind.
        sources: the inputs of modules before it that can be its contexts, the most recent first.
    """

    kind: int
    blocks: tuple[int, ...]
    sources: tuple[Shape, ...]


@dataclass(frozen=True)
class _Part:
    """What a block, a head, a decoder or a context network adds to its module.

    Attributes:
        kept: bytes that its gradient needs of the forward pass.
        largest: of what is kept, bytes of the largest tensor.
        state: bytes of its parameters, statistics and optimizer state.
        output: its shape.
    """

    kept: int
    largest: int
    state: int
    output: Shape


# Of modules up to a boundary: the largest need, the state of all but blocks, where they end.
_Label = tuple[int, int, tuple[int, ...]]


class _Needs:
    """What modules need besides the state of all, in bytes of one device: as measured, or else as estimated."""

    def __init__(self, method: ContSup, network: Network, shape: tuple[int, int, int], batch: int) -> None:
        self._network = network
        # Heads, decoders and context networks do not depend on where the boundaries are.
        self._examples = method.cut_network.modules
        self._recent = max(len(_recent(module)) for module in self._examples)
        self._part = cache(partial(_part, method.optimizer))
        self._inputs = [Shape((batch, *shape), jnp.float32)]
        self._state = 0
        numbers: dict[tuple[nn.Module, Shape], int] = {}
        kinds = []
        for block in network.modules:
            x = self._inputs[-1]
            kinds.append(numbers.setdefault((block, x), len(numbers)))
            part = self._part(block, x)
            self._inputs.append(part.output)
            self._state += part.state
        self._kinds = tuple(kinds)
        self._of_kind = tuple(numbers)
        self._measured: dict[_Key, int] = {}
        self._estimated: dict[_Key, tuple[int, int]] = {}
        self._corrected: dict[_Key, int] = {}

    def learn(self, key: _Key, piece: PieceFootprint) -> None:
        """What a module needs, measured."""
        self._measured[key] = piece.peak - piece.state
        self._corrected.clear()

    def of(self, key: _Key) -> int:
        """What a module needs."""
        if key in self._measured:
            return self._measured[key]
        if key not in self._corrected:
            self._corrected[key] = int(self._estimate(key)[0] * self._correction(key))
        return self._corrected[key]

    def state(self, keys: Sequence[_Key]) -> int:
        """Bytes of the state of all modules."""
        return self._state + sum(self._estimate(key)[1] for key in keys)

    def keys(self, boundaries: Sequence[str]) -> list[_Key]:
        """Those of the modules between these boundaries."""
        ends = [self._network.position(name) + 1 for name in boundaries]
        keys = []
        sources: tuple[Shape, ...] = ()
        for number, (start, end) in enumerate(zip([0, *ends], [*ends, len(self._network)], strict=True)):
            keys.append(self._key(number, start, end, sources))
            sources = self._next(sources, start)
        return keys

    def cheapest(self, modules: int, bound: int) -> tuple[str, ...] | None:
        """The boundaries with the lowest peak, as far as is known; None if none is below `bound` bytes."""
        # What modules further on need depends on these only: a few labels each, of which none is worse than another in
        # both numbers.
        fronts: dict[tuple[tuple[Shape, ...], int], list[_Label]] = {((), 0): [(0, 0, ())]}
        blocks = len(self._network)
        for number in range(modules):
            further: dict[tuple[tuple[Shape, ...], int], list[_Label]] = {}
            left = modules - 1 - number
            for (sources, start), labels in fronts.items():
                following = self._next(sources, start)
                for end in range(start + 1, blocks - left + 1) if left else [blocks]:
                    key = self._key(number, start, end, sources)
                    need, state = self.of(key), self._estimate(key)[1]
                    for largest, total, ends in labels:
                        label = (max(largest, need), total + state, (*ends, end))
                        if label[0] + label[1] + self._state < bound:
                            _insert(further.setdefault((following, end), []), label)
            fronts = further
        complete = [label for labels in fronts.values() for label in labels]
        if not complete:
            return None
        _, _, ends = min(complete, key=lambda label: (label[0] + label[1], label[2]))
        return tuple(self._network.names[end - 1] for end in ends[:-1])

    def _key(self, number: int, start: int, end: int, sources: tuple[Shape, ...]) -> _Key:
        last = end == len(self._network)
        return _Key(-1 if last else min(number, self._recent + 1), self._kinds[start:end], sources)

    def _next(self, sources: tuple[Shape, ...], start: int) -> tuple[Shape, ...]:
        return (self._inputs[start], *sources)[: self._recent]

    def _estimate(self, key: _Key) -> tuple[int, int]:
        """What a module needs, and the state of its head, decoder and context networks."""
        if key not in self._estimated:
            self._estimated[key] = self._estimate_anew(key)
        return self._estimated[key]

    def _estimate_anew(self, key: _Key) -> tuple[int, int]:
        module = self._examples[key.kind]
        inputs = [self._of_kind[kind][1] for kind in key.blocks]
        blocks = [self._part(*self._of_kind[kind]) for kind in key.blocks]
        x, output = inputs[0], blocks[-1].output
        read = dict.fromkeys(module.reads, self._inputs[0])
        read.update({module.reads[0]: x}, **dict(zip(_recent(module), key.sources, strict=False)))
        contexts = [
            self._part(network, read[name], x) for network, name in zip(module.contexts, module.reads[1:], strict=False)
        ]
        head = [] if module.head is None else [self._part(module.head, output)]
        reconstruction = module.reconstruction
        decoder = [] if reconstruction is None else [self._part(reconstruction.decoder, output, self._inputs[0])]
        carried = [*read.values(), *(output, x)[: len(module.writes)]]
        parts = {"contexts": contexts, "blocks": blocks, "head": head, "decoder": decoder}
        kept = most = 0
        for name, each in parts.items():
            for i, part in enumerate(each):
                # While its gradient is computed, there is what comes before it, and the gradients of two tensors.
                most = max(most, kept + part.kept + 2 * part.largest)
                if name not in module.remat:
                    kept += part.kept
                elif name == "blocks" and i:
                    kept += tree_bytes(inputs[i])
        return tree_bytes(carried) + most, sum(part.state for part in (*contexts, *head, *decoder))

    def _correction(self, key: _Key) -> float:
        """By how much estimates were off so far, those of modules alike above all, less the spread: where estimates are
        poor, more cuts are worth a look."""
        if not self._measured:
            return 1.0
        own = Counter(key.blocks)
        ratios, weights = [], []
        for other, measured in self._measured.items():
            theirs = Counter(other.blocks)
            ratios.append(measured / self._estimate(other)[0])
            weights.append(0.01 + (own & theirs).total() / (own | theirs).total())
        mean = np.average(ratios, weights=weights)
        spread = np.sqrt(np.average((np.array(ratios) - mean) ** 2, weights=weights))
        return float(max(mean - spread, min(ratios)))


def _recent(module: LocalModule) -> tuple[str, ...]:
    """Of the tensors that a module reads, those that modules before it supply, the most recent first."""
    return tuple(name for name in module.reads[1 : 1 + len(module.contexts)] if name != IMAGES)


def _insert(labels: list[_Label], label: _Label) -> None:
    if not any(other[0] <= label[0] and other[1] <= label[1] for other in labels):
        labels[:] = [other for other in labels if other[0] < label[0] or other[1] < label[1]]
        labels.append(label)


def _part(optimizer: optax.GradientTransformation, module: nn.Module, *inputs: Shape) -> _Part:
    def forward(variables: Any, *inputs: Array) -> Array:
        return apply_block(module, variables, *inputs, train=True)[0]

    def gradient(variables: Any, *inputs: Array) -> tuple[Array, list[Array]]:
        output, backward = jax.vjp(forward, variables, *inputs)
        return output, list({id(leaf): leaf for leaf in jax.tree.leaves(backward)}.values())

    variables = jax.eval_shape(partial(init_block, module), jax.eval_shape(lambda: jax.random.key(0)), *inputs)
    state = jax.eval_shape(lambda variables: new_part(by_block({"": variables}), optimizer), variables)
    output, kept = jax.eval_shape(gradient, variables, *inputs)
    sizes = [tree_bytes(leaf) for leaf in kept if leaf.shape[:1] == inputs[0].shape[:1]]
    return _Part(
        kept=sum(sizes),
        largest=max(sizes, default=0),
        state=tree_bytes(state),
        output=output,
    )
