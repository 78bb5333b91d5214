"""Equal budgets of the rows of a sweep."""

from pathlib import Path

import pytest

from experiments.config_flag import split_arguments
from experiments.sweep.budget import Budget, check_budget, read_budget, with_budget, write_budget
from experiments.sweep.rows import Rows, Run, read_rows
from experiments.sweep.step_time import StepTime

CONFIG = Path(__file__).parents[2] / "experiments" / "configs" / "contsup" / "table1.py"
WHOLE, R0 = "k=1", "k=16,context=R0"
EACH = {WHOLE: 10, R0: 10}


def rows_of(**overrides) -> Rows:
    overrides = {"epochs": 20, "optimizer.warmup_epochs": 2, **overrides}
    return read_rows(str(CONFIG), {key: str(value) for key, value in overrides.items()}, overrides)


def time_of(seconds: float, multiply_adds: int) -> StepTime:
    return StepTime(seconds, seconds, seconds, 1.0, 1.0, multiply_adds, 5, "cpu", "0.10")


TIMES = {WHOLE: time_of(0.1, 1000), R0: time_of(0.25, 800)}


@pytest.mark.parametrize(
    ("kind", "steps", "epochs"), [("steps", 200, 20), ("seconds", 80, 20), ("multiply-adds", 250, 40)]
)
def test_a_row_gets_what_the_first_row_has(kind, steps, epochs):
    budget = Budget.of_row(kind, rows_of(), WHOLE, 10, TIMES)
    rows = with_budget(rows_of(), [WHOLE, R0], budget, EACH, TIMES)
    config, first = rows.config(Run(R0, 0)), rows.config(Run(WHOLE, 0))
    assert (first.steps, first.optimizer.schedule_steps, first.epochs) == (200, 200, 20)
    assert (config.steps, config.optimizer.schedule_steps, config.epochs) == (steps, steps, epochs)
    assert config.optimizer.warmup_epochs == 2 * epochs // 20
    _, texts = split_arguments(rows.command(Run(R0, 0), Path("sweep"))[3:])
    assert (texts["steps"], texts["epochs"], texts["optimizer.schedule_steps"]) == (str(steps), str(epochs), str(steps))


def test_updates_are_counted_not_batches():
    rows = rows_of(**{"optimizer.accumulate": 4, "steps": 101})
    budget = Budget.of_row("steps", rows, WHOLE, 10, {})
    assert budget.amount == 26
    assert with_budget(rows, [WHOLE], budget, EACH, {}).own[WHOLE]["steps"] == 104


def test_a_sweep_that_resumes_keeps_its_budget_and_gives_it_to_further_rows(tmp_path):
    rows = rows_of()
    assert read_budget(tmp_path, "seconds", rows) == (None, rows)
    budget = Budget.of_row("seconds", rows, WHOLE, 10, TIMES)
    first = with_budget(rows, [WHOLE], budget, EACH, TIMES)
    write_budget(tmp_path, budget, first)
    known, again = read_budget(tmp_path, "seconds", rows)
    assert known == budget and again.own == first.own
    both = with_budget(again, [R0], known, EACH, TIMES)
    assert both.own == with_budget(rows, [WHOLE, R0], budget, EACH, TIMES).own
    with pytest.raises(ValueError, match="has a sweep with --budget=seconds: use this budget, or another --workdir"):
        read_budget(tmp_path, "steps", rows)
    with pytest.raises(ValueError, match="unknown budget 'time': use steps, seconds or multiply-adds"):
        check_budget("time")
