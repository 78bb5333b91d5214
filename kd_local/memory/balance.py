"""Chooses the boundaries that minimise a step's peak memory as the compiler reports it.

There are far too many cuts to compile all. The search starts from the cut of equal layers and measures its modules: it
compiles them and reads the compiler's report. Then it repeats: find the cut with the lowest estimated peak
(`search.py`), measure its modules, and scale the estimates (`estimates.py`) by the lowest ratio of measured to
estimated memory. The search ends when no estimate is below the best measured cut. The result is measured, but it may
not be optimal, because an estimate that is too high hides its cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from kd_local.errors import check_type
from kd_local.local import ContSup, equal_layers
from kd_local.memory.compilations import CompilationRecords
from kd_local.memory.estimates import Estimates, ModuleKind
from kd_local.memory.footprint import PieceFootprint, piece_footprints, plan_for
from kd_local.memory.search import lowest_peak
from kd_local.memory.targets import Target
from kd_local.networks import Network

COMPILATIONS = 40
NEAR = 1.25
"""With `enough`, a cut is measured only if its estimate is below `NEAR * enough`."""

Make = Callable[[Sequence[str]], ContSup]
"""Returns the method whose network is cut after the blocks with these names."""


@dataclass(frozen=True)
class MeasuredCut:
    """Boundaries and the memory that a step needs with them.

    Attributes:
        boundaries: names of the blocks after which the network is cut.
        pieces: the footprint of each module's step.
    """

    boundaries: tuple[str, ...]
    pieces: tuple[PieceFootprint, ...]

    @property
    def largest(self) -> PieceFootprint:
        """The piece with the highest peak."""
        return max(self.pieces, key=lambda piece: piece.peak)

    @property
    def peak_bytes(self) -> int:
        """Peak bytes of one device in a step."""
        return self.largest.peak


def balance(
    make: Make,
    network: Network,
    *,
    modules: int,
    shape: tuple[int, int, int],
    batch: int,
    target: Target,
    records: CompilationRecords | None = None,
    compilations: int = COMPILATIONS,
    enough: int | None = None,
) -> MeasuredCut:
    """The cut of a network with the lowest peak that the search found (see `footprint`).

    Its peak is never higher than with equal layers, which are measured first. The same arguments give the same
    boundaries, whatever `records` contains.

    Args:
        make: returns the method for given boundaries; nothing else may differ.
        network: the network that the method cuts.
        modules: the number of modules.
        shape: height, width and channels of the images (float32).
        batch: images of a step, over all devices of the target.
        target: the devices to compile for.
        records: known compilations; new ones are added.
        compilations: limit on the number of different modules to measure, besides those of the cut of equal layers.
        enough: stop at the first cut that needs at most this many bytes of one device, or when no estimate is below
            `NEAR` times this number.

    Raises:
        ValueError: the number of modules is below 1 or above the number of blocks, there is no image, or the number of
            compilations is negative.
    """
    check_type("target", target, Target, "use target('local'), of kd_local.memory")
    if compilations < 0:
        raise ValueError(f"compilations is {compilations}: use 0, which keeps the cut of equal layers, or more")
    known = CompilationRecords() if records is None else records
    boundaries = equal_layers(network, modules)
    method = make(boundaries)
    calls = plan_for(method, shape, batch, target.mesh).calls
    found = {call.signature: known.of(call, target) for call in calls}
    best = MeasuredCut(boundaries, piece_footprints(calls, found))
    limit = len(found) + compilations
    estimates = Estimates(method, network, shape, max(1, batch // target.mesh.size))
    kinds = estimates.kinds(boundaries)
    measured = {kind: piece.peak - piece.state for kind, piece in zip(kinds, best.pieces, strict=True)}
    seen = {boundaries}
    while enough is None or best.peak_bytes > enough:
        bound = best.peak_bytes if enough is None else min(best.peak_bytes, int(NEAR * enough))
        need = _needs(estimates, measured)
        promising = lowest_peak(estimates, need, modules, bound)
        if promising is None or promising in seen:
            break
        seen.add(promising)
        calls, kinds = plan_for(make(promising), shape, batch, target.mesh).calls, estimates.kinds(promising)
        state = estimates.state + sum(estimates.of(kind).state for kind in kinds)
        # Largest module first: if it is too large, the others need not be compiled.
        for call, kind in sorted(zip(calls, kinds, strict=True), key=lambda pair: need(pair[1]), reverse=True):
            if call.signature not in found:
                if len(found) == limit:
                    return best
                found[call.signature] = known.of(call, target)
            piece = piece_footprints([call], found)[0]
            measured[kind] = piece.peak - piece.state
            if measured[kind] + state >= best.peak_bytes:
                break
        else:
            best = min(best, MeasuredCut(promising, piece_footprints(calls, found)), key=lambda cut: cut.peak_bytes)
    return best


def _needs(estimates: Estimates, measured: dict[ModuleKind, int]) -> Callable[[ModuleKind], int]:
    """The function from a kind of module to its bytes besides the state of all modules: measured, or estimated."""
    known = dict(measured)
    # The lowest ratio, because an estimate that is too low costs compilations, and one that is too high may hide the
    # best cut.
    scale = min(need / estimates.of(kind).need for kind, need in known.items())
    return cache(lambda kind: known[kind] if kind in known else int(scale * estimates.of(kind).need))
