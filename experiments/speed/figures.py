"""The figures of the rows of the speed table, from their records."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from experiments.speed.peaks import peak_flops
from experiments.speed.records import Records, Round
from experiments.speed.rows import END_TO_END, PYTORCH, SpeedRow


def figures(row: SpeedRow, rows: Sequence[SpeedRow], records: Records, batch: int) -> dict[str, Any]:
    """The figures of a row with a compilation and rounds.

    Times are seconds of a step. `flops` are floating-point operations a second. A ratio compares the medians of the
    rounds that ran in turn with rounds of the other row; of several rows in PyTorch, the fastest is the other.
    """
    compilation, rounds = records.compilation(row), records.rounds(row)
    assert compilation is not None
    seconds = [one.seconds for one in rounds]
    median, flops = records.seconds(row), records.flops(row)
    peak = peak_flops(compilation.device, row.dtype)
    ratios = {
        kind: [
            found
            for other in rows
            if row.reference(other) == kind and (found := ratio(rounds, records.rounds(other))) is not None
        ]
        for kind in (END_TO_END, PYTORCH)
    }
    of_itself = 1.0 if row.method == END_TO_END else None
    return {
        **asdict(row),
        "seconds": median,
        "least": min(seconds),
        "most": max(seconds),
        "rounds": len(seconds),
        "host_seconds": statistics.median(one.host_seconds for one in rounds),
        "images_per_second": batch / median,
        "of_end_to_end": max(ratios[END_TO_END], default=of_itself),
        "of_pytorch": max(ratios[PYTORCH], default=None),
        "flops": flops,
        "of_peak": flops / peak if flops and peak else None,
        **asdict(compilation),
        "measured_bytes": rounds[-1].measured_bytes,
    }


def ratio(rounds: Sequence[Round], others: Sequence[Round]) -> float | None:
    """The ratio of two rows' median seconds in the rounds that ran in turn; None if there is none."""
    names = {one.name for one in rounds} & {one.name for one in others}
    if not names:
        return None
    of_rows = [[one.seconds for one in each if one.name in names] for each in (rounds, others)]
    return statistics.median(of_rows[0]) / statistics.median(of_rows[1])


def to_time(rows: Sequence[SpeedRow], records: Records, number: int) -> dict[SpeedRow, int]:
    """The rounds to time of each row, in the order of the rows.

    A row with fewer rounds needs the others, and each row that it is compared with runs in turn with it.
    """
    missing = {row: max(0, number - len(records.rounds(row))) for row in rows}
    found = {
        row: max([missing[row], *(missing[other] for other in rows if other.reference(row) is not None)])
        for row in rows
    }
    return {row: count for row, count in found.items() if count}
