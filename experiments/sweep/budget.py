"""Equal budgets: every row of a sweep gets the steps, the seconds or the multiply-adds of the first of its rows.

A row keeps its schedule: `optimizer.schedule_steps` compresses it to the steps that the budget allows, or stretches it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.configs.of_json import tuples
from experiments.sweep.rows import Rows, Run
from experiments.sweep.step_time import StepTime
from kd_local.errors import unknown
from kd_local.files import read_json, replace_text

STEPS, SECONDS, MULTIPLY_ADDS = BUDGETS = ("steps", "seconds", "multiply-adds")
FILE = "budget.json"


def check_budget(budget: str) -> None:
    """Checks the name of a budget.

    Raises:
        ValueError: it is unknown.
    """
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)


@dataclass(frozen=True)
class Budget:
    """What every row of a sweep gets.

    Attributes:
        kind: one of `BUDGETS`; `steps` counts updates of the parameters.
        amount: updates, seconds or multiply-adds.
    """

    kind: str
    amount: float

    @classmethod
    def of_row(cls, kind: str, rows: Rows, name: str, steps_per_epoch: int, times: Mapping[str, StepTime]) -> "Budget":
        """What a row needs for the epochs, or the steps, of its config."""
        config = rows.config(Run(name, 0))
        updates = math.ceil((config.steps or config.epochs * steps_per_epoch) / config.optimizer.accumulate)
        return cls(kind, updates * _cost(kind, name, times))


def with_budget(
    rows: Rows, names: Sequence[str], budget: Budget, steps_per_epoch: Mapping[str, int], times: Mapping[str, StepTime]
) -> Rows:
    """The rows, with the steps that the budget allows for each of `names`.

    Args:
        rows: all rows of the config file.
        names: the rows that get their steps.
        budget: what each row gets.
        steps_per_epoch: steps of an epoch, by row.
        times: the time of a step, by row; not used for a budget of steps.
    """
    own = {}
    for name in names:
        config = rows.config(Run(name, 0))
        steps = max(1, round(budget.amount / _cost(budget.kind, name, times))) * config.optimizer.accumulate
        own[name] = _keys(config, steps, steps_per_epoch[name])
    return replace(rows, own={**rows.own, **own})


def _cost(kind: str, name: str, times: Mapping[str, StepTime]) -> float:
    """The cost of an update of a row."""
    if kind == STEPS:
        return 1.0
    return times[name].seconds if kind == SECONDS else float(times[name].multiply_adds)


def _keys(config: Any, steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """The keys that end a run after some steps. If these are more than its epochs have, all epochs are multiplied."""
    factor = math.ceil(steps / (config.epochs * steps_per_epoch))
    found: dict[str, Any] = {"steps": steps, "optimizer.schedule_steps": steps}
    if factor > 1:
        found["epochs"] = config.epochs * factor
        if config.optimizer.warmup_epochs:
            found["optimizer.warmup_epochs"] = config.optimizer.warmup_epochs * factor
        if config.optimizer.milestones:
            found["optimizer.milestones"] = tuple(each * factor for each in config.optimizer.milestones)
    return found


def write_budget(workdir: Path, budget: Budget, rows: Rows) -> None:
    """Writes the budget and the keys of each row, which a sweep that resumes takes from there."""
    replace_text(workdir / FILE, json.dumps({**asdict(budget), "rows": rows.own}, indent=2) + "\n")


def read_budget(workdir: Path, kind: str, rows: Rows) -> tuple[Budget | None, Rows]:
    """The budget of an earlier start of the sweep, None if there is none, and the rows with the keys that they had.

    Raises:
        ValueError: the folder has another kind of budget, or its file is damaged.
    """
    if not (workdir / FILE).exists():
        return None, rows
    found = read_json(workdir / FILE, {"kind": str, "amount": float, "rows": dict}, way_out="use another --workdir")
    if found["kind"] != kind:
        raise ValueError(f"{workdir} has a sweep with --budget={found['kind']}: use this budget, or another --workdir")
    return Budget(kind, found["amount"]), replace(rows, own={row: tuples(keys) for row, keys in found["rows"].items()})
