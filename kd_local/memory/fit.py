"""Chooses the smallest number of modules that fits a memory budget, and whether to rematerialise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kd_local.local import ContSup
from kd_local.memory.balance import COMPILATIONS, MeasuredCut, balance
from kd_local.memory.compilations import CompilationRecords
from kd_local.memory.footprint import Footprint, footprint
from kd_local.memory.targets import Target
from kd_local.networks import Network
from kd_local.sizes import shown_bytes

MakeRemat = Callable[[Sequence[str], bool], ContSup]
"""Returns the method whose network is cut after the blocks with these names, rematerialised or not."""


@dataclass(frozen=True)
class Fit:
    """A method that fits.

    Attributes:
        modules: the number of modules.
        boundaries: names of the blocks after which the network is cut.
        remat: True if the method is rematerialised.
        footprint: the memory of its step.
    """

    modules: int
    boundaries: tuple[str, ...]
    remat: bool
    footprint: Footprint


def fit(
    make: MakeRemat,
    network: Network,
    *,
    shape: tuple[int, int, int],
    batch: int,
    target: Target,
    budget: int | None = None,
    remats: Sequence[bool] = (False, True),
    records: CompilationRecords | None = None,
    compilations: int = COMPILATIONS,
) -> Fit:
    """The smallest number of modules whose step fits, with balanced boundaries, rematerialised only if necessary.

    The number of modules is doubled until a step fits, then bisected, because more modules usually have a lower peak.

    Args:
        make: returns the method for given boundaries, rematerialised or not; nothing else may differ. Without
            boundaries the method has one module: end to end.
        network: the network that the method cuts.
        shape: height, width and channels of the images (float32).
        batch: images of a step, over all devices of the target.
        target: the devices to compile for.
        budget: bytes of one device; None: the memory of a device of the target.
        remats: values of `remat` to try, in this order, for each number of modules.
        records: known compilations; new ones are added.
        compilations: limit for each number of modules, see `balance`.

    Raises:
        ValueError: nothing fits (the message has the lowest peak found and its largest contributions), the budget is
            below one byte, there is no budget and the target's memory is unknown, or `remats` is empty.
    """
    if budget is None:
        budget = target.capacity
    if budget is None:
        raise ValueError(f"the memory of target {target.name!r} is not known: give a budget, such as 8GiB")
    if budget < 1:
        raise ValueError(f"budget is {budget} bytes: use 1 or more")
    if not remats:
        raise ValueError("remats is empty: use (False,), (True,) or (False, True)")
    known = CompilationRecords() if records is None else records
    tried: dict[tuple[int, bool], MeasuredCut] = {}

    def search(modules: int, remat: bool, enough: int | None) -> MeasuredCut:
        return balance(
            lambda boundaries: make(boundaries, remat),
            network,
            modules=modules,
            shape=shape,
            batch=batch,
            target=target,
            records=known,
            compilations=compilations,
            enough=enough,
        )

    def fitting(modules: int) -> tuple[int, bool] | None:
        """The number of modules and the first of `remats` with which they fit; None if none fits."""
        for remat in remats:
            tried[modules, remat] = search(modules, remat, budget)
            if tried[modules, remat].peak_bytes <= budget:
                return modules, remat
        return None

    # Starts with few modules, which have few cuts. Many modules take long to balance.
    too_few, modules = 0, 1
    while (best := fitting(modules)) is None and modules < len(network):
        too_few, modules = modules, min(2 * modules, len(network))
    if best is None:
        modules, remat = min(tried, key=lambda key: tried[key].peak_bytes)
        raise ValueError(_too_much(budget, search(modules, remat, None), remat))
    while best[0] - too_few > 1:
        middle = (too_few + best[0]) // 2
        found = fitting(middle)
        if found is None:
            too_few = middle
        else:
            best = found
    modules, remat = best
    boundaries = search(modules, remat, None).boundaries
    return Fit(modules, boundaries, remat, footprint(make(boundaries, remat), shape, batch, target, records=known))


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
    after = f" (cut after {', '.join(cut.boundaries)})" if cut.boundaries else ""
    way_out = "a smaller network, or an optimizer with less state" if order[0] == state else "a smaller batch"
    return (
        f"nothing fits into {_exact(budget)}: the lowest peak found is {_exact(cut.peak_bytes)}, with "
        f"{len(cut.pieces)} module{'s'[: len(cut.pieces) > 1]}{after}, {'' if remat else 'not '}rematerialised; "
        f"largest first: {sizes}; use {way_out}, or a larger budget"
    )


def _exact(size: int) -> str:
    return f"{shown_bytes(size)} ({size} bytes)"
