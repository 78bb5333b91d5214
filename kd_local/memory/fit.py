"""What fits a device: the smallest number of modules, and whether to rematerialise, for a number of bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kd_local.local import ContSup
from kd_local.memory.balance import COMPILATIONS, NEAR, MeasuredCut, balance
from kd_local.memory.compilations import CompilationRecords
from kd_local.memory.footprint import Footprint, footprint
from kd_local.memory.targets import Target
from kd_local.networks import Network
from kd_local.sizes import shown_bytes

MakeRemat = Callable[[Sequence[str], bool], ContSup]
"""A method whose network is cut behind the blocks of these names, rematerialised or not."""


@dataclass(frozen=True)
class Fit:
    """The method that fits.

    Attributes:
        modules: how many.
        boundaries: names of the blocks behind which the network is cut.
        remat: whether it is rematerialised.
        footprint: what its step needs.
    """

    modules: int
    boundaries: tuple[str, ...]
    remat: bool
    footprint: Footprint


def fit(
    make: MakeRemat,
    network: Network,
    shape: tuple[int, int, int],
    batch: int,
    target: Target,
    budget: int | None = None,
    *,
    remats: Sequence[bool] = (False, True),
    records: CompilationRecords | None = None,
    compilations: int = COMPILATIONS,
) -> Fit:
    """The smallest number of modules whose step fits, cut so that it needs least, rematerialised only if it must be.

    Numbers of modules are tried by bisection: the more, the lower the peak, as a rule.

    Args:
        make: gives the method for boundaries, rematerialised or not, all else the same. Without boundaries it is one
            module: end to end.
        network: the one that it cuts.
        shape: height, width and channels of the images (float32).
        batch: images of a step, over all devices of the target.
        target: where.
        budget: bytes of one device; left out, what the target has.
        remats: whether to rematerialise: what to try, in order, with each number of modules.
        records: compilations that are known already; new ones are added.
        compilations: for each number of modules, see `balance`.

    Raises:
        ValueError: nothing fits, which names the lowest peak that was found and what dominates it; a budget below one
            byte, or none where the target does not tell what it has; nothing to try.
    """
    if budget is None:
        budget = target.capacity
    if budget is None:
        raise ValueError(f"target {target.name!r} does not tell how much memory it has: give a budget, such as 8GiB")
    if budget < 1:
        raise ValueError(f"budget is {budget} bytes: use 1 or more")
    if not remats:
        raise ValueError("remats is empty: use (False,), (True,) or (False, True)")
    known = CompilationRecords() if records is None else records
    search = partial(
        balance, network=network, shape=shape, batch=batch, target=target, records=known, compilations=compilations
    )
    tried: dict[tuple[int, bool], MeasuredCut] = {}

    def fitting(modules: int) -> tuple[int, bool] | None:
        """So many modules, with the first of `remats` that makes them fit."""
        for remat in remats:
            cut = tried[modules, remat] = search(partial(_cut, make, remat), modules=modules, enough=budget)
            if cut.peak_bytes <= budget:
                return modules, remat
        return None

    # From below, in steps of doubling: few modules need most, many take longest to balance.
    too_few, modules = 0, 1
    while (best := fitting(modules)) is None and modules < len(network):
        too_few, modules = modules, min(2 * modules, len(network))
    lowest = min(cut.peak_bytes for cut in tried.values())
    if best is None and lowest <= NEAR * budget:
        # The more modules, the more heads and contexts: all at once may need a little more than some number between.
        between = (modules for modules in range(1, len(network)) if (modules, remats[0]) not in tried)
        best = next(filter(None, map(fitting, between)), None)
        too_few = 0 if best is None else best[0] - 1
    if best is None:
        near = [key for key, cut in tried.items() if cut.peak_bytes <= NEAR * lowest]
        cuts = {(modules, remat): search(partial(_cut, make, remat), modules=modules) for modules, remat in near}
        modules, remat = min(cuts, key=lambda key: cuts[key].peak_bytes)
        raise ValueError(_too_much(budget, cuts[modules, remat], remat))
    while best[0] - too_few > 1:
        middle = (too_few + best[0]) // 2
        found = fitting(middle)
        if found is None:
            too_few = middle
        else:
            best = found
    modules, remat = best
    # The search for enough may have seen a cut that the search for the best ends before.
    seen = search(partial(_cut, make, remat), modules=modules), tried[best]
    boundaries = min(seen, key=lambda cut: cut.peak_bytes).boundaries
    return Fit(modules, boundaries, remat, footprint(make(boundaries, remat), shape, batch, target, records=known))


def _cut(make: MakeRemat, remat: bool, boundaries: Sequence[str]) -> ContSup:
    return make(boundaries, remat)


def _too_much(budget: int, cut: MeasuredCut, remat: bool) -> str:
    piece = cut.largest
    state = "parameters, statistics and optimizer state"
    parts = {
        f"temporary memory of {piece.name}": piece.compilation.temp_bytes,
        "tensors carried between modules": piece.carried,
        state: piece.state,
    }
    order = sorted(parts, key=lambda name: parts[name], reverse=True)
    sizes = ", ".join(f"{name} {_exact(parts[name])}" for name in order)
    behind = f" (cut behind {', '.join(cut.boundaries)})" if cut.boundaries else ""
    way_out = "a smaller network, or an optimizer of less state" if order[0] == state else "a smaller batch"
    return (
        f"nothing fits into {_exact(budget)}: the lowest peak found is {_exact(cut.peak_bytes)}, with "
        f"{len(cut.pieces)} module{'s'[: len(cut.pieces) > 1]}{behind}, {'' if remat else 'not '}rematerialised; "
        f"largest first: {sizes}; use {way_out}, or give more"
    )


def _exact(size: int) -> str:
    return f"{shown_bytes(size)} ({size} bytes)"
