"""Chooses the boundaries that minimise a step's peak memory as the compiler reports it.

There are far too many cuts to compile. The search starts from the cut of equal layers, whose modules it measures. Then
it repeats: find the cut with the lowest estimated peak (`search.py`), compile its modules, and scale the estimates
(`estimates.py`) by the lowest ratio of measured to estimated memory. It ends when no estimate is below the best
measured cut. The result is measured, but need not be optimal: an estimate that is still too high hides its cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from kd_local.local import ContSup, equal_layers
from kd_local.memory.compilations import CompilationRecords
from kd_local.memory.estimates import Estimates, ModuleKind
from kd_local.memory.footprint import PieceFootprint, piece_footprints, plan_for
from kd_local.memory.search import lowest_peak
from kd_local.memory.targets import Target
from kd_local.networks import Network

COMPILATIONS = 40
NEAR = 1.25
"""With `enough`, a cut is worth measuring if its estimate is below this multiple of it."""

Make = Callable[[Sequence[str]], ContSup]
"""Gives the method whose network is cut after the blocks of these names."""


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

    It is never worse than the cut of equal layers, which is measured first. The same arguments give the same
    boundaries, whichever records are known.

    Args:
        make: gives the method for boundaries; all else must be the same.
        network: the network that the method cuts.
        modules: the number of modules.
        shape: height, width and channels of the images (float32).
        batch: images of a step, over all devices of the target.
        target: the devices to compile for.
        records: compilations that are known already; new ones are added.
        compilations: the most different modules to measure, besides those of the cut of equal layers.
        enough: stop at the first cut that needs at most this many bytes of one device, or when no estimate is below
            `NEAR` times this number.

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
        # The largest first: if it is too large, the others need not be compiled.
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
    """Bytes that each kind of module needs besides the state of all modules: measured, or estimated and scaled."""
    known = dict(measured)
    # The lowest ratio: an estimate that is too low costs compilations, one that is too high may hide the best cut.
    scale = min(need / estimates.of(kind).need for kind, need in known.items())
    return cache(lambda kind: known[kind] if kind in known else int(scale * estimates.of(kind).need))
