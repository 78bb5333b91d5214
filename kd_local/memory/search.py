"""Finds the boundaries with the lowest estimated peak by dynamic programming over the blocks of a network.

The peak is the state of all modules plus the largest need of a module. Both depend on the boundaries.
"""

from collections.abc import Callable

from jax import ShapeDtypeStruct as Shape

from kd_local.memory.estimates import Estimates, ModuleKind

# A cut of the first blocks: the largest need of a module, the bytes of the state of heads, decoders and context
# networks, and the modules' ends.
_Cut = tuple[int, int, tuple[int, ...]]


def lowest_peak(
    estimates: Estimates, need: Callable[[ModuleKind], int], modules: int, bound: int
) -> tuple[str, ...] | None:
    """The boundaries of `modules` modules with the lowest peak; None if no peak is below `bound` bytes.

    Args:
        estimates: the estimates for the network.
        need: bytes that a kind of module needs besides the state of all modules.
        modules: the number of modules.
        bound: upper limit of the peak in bytes.
    """
    # The rest of a cut depends on the end of the first modules and on their last inputs. For each such pair, keep the
    # cuts that no other cut equals or undercuts in both largest need and state.
    fronts: dict[tuple[tuple[Shape, ...], int], list[_Cut]] = {((), 0): [(0, 0, ())]}
    blocks = len(estimates.network)
    for number in range(modules):
        longer: dict[tuple[tuple[Shape, ...], int], list[_Cut]] = {}
        left = modules - 1 - number
        for (sources, start), cuts in fronts.items():
            following = estimates.next_sources(sources, start)
            for end in range(start + 1, blocks - left + 1) if left else [blocks]:
                kind = estimates.kind(number, start, end, sources)
                needed, state = need(kind), estimates.of(kind).state
                for largest, total, ends in cuts:
                    cut = (max(largest, needed), total + state, (*ends, end))
                    if cut[0] + cut[1] + estimates.state < bound:
                        _insert(longer.setdefault((following, end), []), cut)
        fronts = longer
    complete = [cut for cuts in fronts.values() for cut in cuts]
    if not complete:
        return None
    _, _, ends = min(complete, key=lambda cut: (cut[0] + cut[1], cut[2]))
    return tuple(estimates.network.names[end - 1] for end in ends[:-1])


def _insert(cuts: list[_Cut], cut: _Cut) -> None:
    if not any(_dominates(other, cut) for other in cuts):
        cuts[:] = [other for other in cuts if not _dominates(cut, other)]
        cuts.append(cut)


def _dominates(one: _Cut, other: _Cut) -> bool:
    # If the numbers are equal, the first boundaries win, so that the result does not depend on the order of the search.
    return one[0] <= other[0] and one[1] <= other[1] and (one[2] <= other[2] or one[:2] != other[:2])
