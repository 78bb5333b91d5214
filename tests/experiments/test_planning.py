"""Decisions of a config that need measurements."""

import json

import pytest

from experiments.configs import default
from experiments.from_config.experiment import build
from experiments.from_config.planning import PLAN, left_to_measurement, planned
from kd_local.memory import footprint, target


def config(**local):
    one = default.get_config()
    one.batch_size = 32
    one.local.context = "R0"
    for key, value in local.items():
        one.local[key] = value
    return one


def peak(one) -> int:
    experiment = build(one)
    return footprint(experiment.method, experiment.shape, one.batch_size, target()).peak_bytes


def test_a_config_without_measurements_is_unchanged(tmp_path):
    one = config()
    assert not left_to_measurement(one)
    assert planned(one, tmp_path) is one
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", "null", "5", "{}", '{"modules": 3, "boundaries": "stem"}'])
def test_a_damaged_plan_is_refused_with_a_way_out(tmp_path, content):
    (tmp_path / PLAN).write_text(content)
    with pytest.raises(ValueError, match=r"plan.json' is damaged \(.*\): restore it, or use another --workdir"):
        planned(config(modules=3, boundaries="balanced"), tmp_path)
    assert (tmp_path / PLAN).read_text() == content


@pytest.mark.exhaustive
def test_balanced_boundaries_are_found_once_and_stored(tmp_path, capsys):
    one = config(modules=3, boundaries="balanced")
    found = planned(one, tmp_path)
    assert build(found).modules == 3
    assert peak(found) <= peak(config(modules=3))
    assert "measured: 3 modules, cut after " in capsys.readouterr().out
    plan = json.loads((tmp_path / PLAN).read_text())
    assert plan["peak_bytes"] == peak(found)
    # The stored plan is used. Nothing is measured again.
    (tmp_path / PLAN).write_text(json.dumps({**plan, "boundaries": ["stem", "stage3/0"]}))
    assert build(planned(one, tmp_path)).boundaries == ("stem", "stage3/0")


@pytest.mark.exhaustive
def test_a_memory_budget(tmp_path):
    whole = peak(config(modules=1))
    found = planned(config(memory_budget=f"{int(0.8 * whole)}B"), tmp_path)
    assert found.local.modules > 1 or found.local.remat != "auto"
    assert peak(found) <= 0.8 * whole
    assert found.local.memory_budget is None
    with pytest.raises(ValueError, match=r"^nothing fits into [^:]*\b1000\b[^:]*: the lowest peak found is \d"):
        planned(config(memory_budget="1KB"), tmp_path / "other")
