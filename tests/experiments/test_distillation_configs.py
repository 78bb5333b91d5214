"""The rows of the comparisons of distillation: they build, and have what their options name."""

import importlib

import pytest

from experiments.configs.checks import check_used
from experiments.configs.combination import DISTILLATION
from experiments.configs.contradictions import check_config
from experiments.from_config.experiment import build

NAMES = ("digits", "comparison")


def load(name: str):
    return importlib.import_module(f"experiments.configs.blockkd.{name}")


ROWS = [
    pytest.param(name, row, marks=() if i % 12 == 8 else pytest.mark.exhaustive, id=f"{name}-{row}")
    for name in NAMES
    for i, row in enumerate(load(name).ROWS)
]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_is_accepted_by_the_factory(name, row):
    config = load(name).get_config(row)
    check_used(config)
    check_config(config)
    build(config, fresh_teachers=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_occurs_once(name):
    assert len(set(load(name).ROWS)) == len(load(name).ROWS)


def test_every_method_of_distillation_has_a_row_of_digits():
    assert {row.removeprefix("method=") for row in load("digits").ROWS} >= {"end_to_end", *DISTILLATION}
    assert load("digits").get_config("method=kd,dot=0.05").optimizer.dot == 0.05
    assert load("digits").get_config("method=kd").optimizer.dot is None


def test_the_rows_of_the_comparison():
    config = load("comparison").get_config("method=block_kd,distance=wttm,directions=both,scale=short")
    assert (config.block_kd.distance, config.block_kd.directions, config.batch_size) == ("wttm", "both", 32)
    assert (config.teacher.network, config.teacher.shortcut, config.network.name) == ("resnet56", "padding", "resnet20")
    assert load("comparison").get_config("method=kd,student=resnet8").network.name == "resnet8"
    config = load("comparison").get_config("method=fcfd")
    assert (config.fcfd.feature_weight, config.fcfd.mixture_weight, config.optimizer.nesterov) == (0.02, 1.0, False)
    assert load("comparison").get_config("method=dkd").dkd.beta == 2.0
    with pytest.raises(ValueError, match="unknown option 'direction': use method, distance, directions"):
        load("comparison").get_config("method=kd,direction=both")
