"""The placement of a step: the group of devices on which each piece runs.

Pieces stay in order, so that a batch goes from group to group once. While a group works on one batch, the group before
it works on the next. The slowest group determines the speed.

A moving average of a later module's parameters runs on the group of that module (`with_next`): there it needs no copy
of them, and the group before does not wait for them.
"""

from collections.abc import Sequence
from itertools import pairwise

from kd_local.contract import owner
from kd_local.costs import tree_bytes
from kd_local.parallel.pieces import Call, Piece


def with_next(pieces: Sequence[Piece]) -> tuple[bool, ...]:
    """For each piece, True if it belongs to the group of the next piece: it trains nothing, and a later piece owns a
    part that it reads."""
    later: set[str] = set()
    tied = []
    for piece in reversed(pieces):
        tied.append(
            not any(program.trains for program in piece.programs) and any(owner(path) in later for path in piece.frozen)
        )
        later.update(program.name for program in piece.programs)
    return tuple(reversed(tied))


def check_groups(pieces: int, groups: int) -> None:
    """Checks that each group can have a piece.

    Raises:
        ValueError: there are more groups than pieces, or no group.
    """
    if not 1 <= groups <= pieces:
        raise ValueError(
            f"{groups} groups of devices for {pieces} pieces of a step: use 1 to {pieces} (mesh.module), or "
            "more modules"
        )


def check_placement(placement: Sequence[int] | None, pieces: Sequence[Piece], groups: int) -> None:
    """Checks a placement; without one, checks that each group can have a piece, see `with_next`.

    Raises:
        ValueError: see `check_groups`; or the placement does not have one group per piece, in rising order from 0 and
            with every group.
    """
    check_groups(len(pieces) - sum(with_next(pieces)), groups)
    if placement is None:
        return
    if len(placement) != len(pieces) or sorted(placement) != list(placement) or set(placement) != set(range(groups)):
        raise ValueError(
            f"placement {tuple(placement)} of {len(pieces)} pieces in {groups} groups: use one group per piece, rising "
            f"from 0 to {groups - 1}, with every group"
        )


def balanced_placement(
    costs: Sequence[int] | Sequence[float], groups: int, tied: Sequence[bool] = ()
) -> tuple[int, ...]:
    """The group of each piece, in rising order from 0, such that the cost of the most expensive group is minimal.

    Args:
        costs: the cost of each piece, 0 or more, in any unit, such as operations or seconds.
        groups: number of groups, from 1 to the number of pieces. Each group gets at least one piece.
        tied: for each piece, whether it must be in the group of the next one, see `with_next`; empty: none.

    Raises:
        ValueError: a cost is out of range; see also `check_groups`.
    """
    if tied:
        sums, unit = list[float](), list[int]()
        for cost, joins in zip(costs, (False, *tied[:-1]), strict=True):
            if joins:
                sums[-1] += cost
            else:
                sums.append(cost)
            unit.append(len(sums) - 1)
        placement = balanced_placement(sums, groups)
        return tuple(placement[i] for i in unit)
    pieces = len(costs)
    check_groups(pieces, groups)
    if min(costs) < 0:
        raise ValueError(f"costs are {tuple(costs)}: use numbers of 0 or more")
    # best[n]: for the first n pieces, the cost of the most expensive group, the sum of squares, and the ends of the
    # groups. The lowest sum of squares chooses the most even groups if several divisions have the same maximum.
    ends = [0.0]
    for cost in costs:
        ends.append(ends[-1] + cost)
    best: list[tuple[float, float, tuple[int, ...]] | None] = [(0.0, 0.0, ()), *[None] * pieces]
    for _ in range(groups):
        following: list[tuple[float, float, tuple[int, ...]] | None] = [None] * (pieces + 1)
        for n in range(1, pieces + 1):
            found = []
            for start in range(n):
                before = best[start]
                if before is not None:
                    cost = ends[n] - ends[start]
                    found.append((max(before[0], cost), before[1] + cost**2, (*before[2], n)))
            following[n] = min(found, default=None)
        best = following
    chosen = best[pieces]
    assert chosen is not None  # there are as many pieces as groups
    return tuple(group for group, (start, end) in enumerate(pairwise((0, *chosen[2]))) for _ in range(start, end))


def transfers_between_groups(calls: Sequence[Call], placement: Sequence[int]) -> tuple[int, ...]:
    """Bytes that move with a batch from each group to the next."""
    moved = []
    for (_, before), (call, after) in pairwise(zip(calls, placement, strict=True)):
        if after != before:
            moved.append(tree_bytes(call.live))
    return tuple(moved)
