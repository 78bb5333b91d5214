"""Equal budgets: every row of a sweep gets the steps, the seconds or the multiply-adds of the first of its rows.

A row keeps its schedule: `optimizer.schedule_steps` compresses it to the steps that the budget allows, or stretches it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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


def with_budget(
    rows: Rows, names: Sequence[str], budget: str, steps_per_epoch: Mapping[str, int], times: Mapping[str, StepTime]
) -> Rows:
    """The rows, each with the steps that its budget allows: that of the first row with its config's epochs.

    Args:
        rows: all rows of the config file.
        names: the rows of the sweep; the first has the budget.
        budget: `steps` counts updates of the parameters; the other two need `times`.
        steps_per_epoch: steps of an epoch, by row.
        times: the time of a step, by row.
    """
    first = rows.config(Run(names[0], 0))
    updates = math.ceil((first.steps or first.epochs * steps_per_epoch[names[0]]) / first.optimizer.accumulate)
    cost = dict.fromkeys(names, 1.0)
    if budget == SECONDS:
        cost = {name: times[name].seconds for name in names}
    elif budget == MULTIPLY_ADDS:
        cost = {name: float(times[name].multiply_adds) for name in names}
    own = {}
    for name in names:
        config = rows.config(Run(name, 0))
        steps = max(1, round(updates * cost[names[0]] / cost[name])) * config.optimizer.accumulate
        own[name] = _keys(config, steps, steps_per_epoch[name])
    return replace(rows, own=own)


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


def write_budget(workdir: Path, budget: str, rows: Rows) -> None:
    """Writes the keys of each row, which a sweep that resumes takes from there."""
    replace_text(workdir / FILE, json.dumps({"budget": budget, "rows": rows.own}, indent=2) + "\n")


def read_budget(workdir: Path, budget: str, rows: Rows, names: Sequence[str]) -> Rows | None:
    """The rows with the keys of an earlier start of the sweep; None if there are none for all of these rows.

    Raises:
        ValueError: the folder has another budget, or its file is damaged.
    """
    if not (workdir / FILE).exists():
        return None
    found = read_json(workdir / FILE, {"budget": str, "rows": dict}, way_out="use another --workdir")
    if found["budget"] != budget:
        raise ValueError(
            f"{workdir} has a sweep with --budget={found['budget']}: use this budget, or another --workdir"
        )
    if not set(names) <= found["rows"].keys():
        return None
    return replace(rows, own={row: tuples(keys) for row, keys in found["rows"].items()})
