"""The key `optimizer.dot`."""

import pytest

from experiments.configs.checks import check_used
from experiments.configs.contradictions import check_config
from experiments.configs.default import get_config
from experiments.folders.identity import options
from experiments.from_config.experiment import build
from experiments.memory.rows import Row, table_config
from kd_local.distill import Distillation
from kd_local.local import EndToEnd
from kd_local.two_gradients import TwoGradientOptimizer


def config(method: str = "kd", **values):
    made = get_config()
    made.update_from_flattened_dict(
        {
            "method": method,
            "teacher.network": "resnet14",
            "optimizer.dot": 0.075,
            "optimizer.warmup_epochs": 0,
            **values,
        }
    )
    return made


@pytest.mark.parametrize("method", ["kd", "block_kd", "combined"])
def test_distillation_takes_two_gradients(method):
    asked = config(method)
    check_used(asked)
    check_config(asked)
    experiment = build(asked, fresh_teachers=True)
    assert isinstance(experiment.method, Distillation)
    assert isinstance(experiment.method.optimizer, TwoGradientOptimizer)
    assert experiment.optimizer is experiment.method.optimizer.plain
    EndToEnd(experiment.network, experiment.optimizer)  # the comparison of every summary
    assert options(asked)["optimizer.dot"] == 0.075
    assert "optimizer.dot" not in options(config(method, **{"optimizer.dot": None}))


@pytest.mark.parametrize("method", ["contsup", "end_to_end", "hpff"])
def test_methods_with_one_gradient_refuse_it(method):
    with pytest.raises(ValueError, match="optimizer.dot is 0.075, which has an effect only with a method of distillat"):
        check_used(config(method))
    with pytest.raises(ValueError, match=f"optimizer.dot is 0.075, but method {method} computes one gradient, and DOT"):
        build(config(method, **{"local.modules": 2}), fresh_teachers=True)


def test_it_needs_sgd_and_momenta_in_range():
    with pytest.raises(ValueError, match="optimizer.dot is 0.075, which has an effect only with optimizer.name=sgd"):
        check_used(config(**{"optimizer.name": "adam"}))
    with pytest.raises(ValueError, match="dot is 0.075 with momentum 0.95: the momenta 0.875 and 1.025 must be in"):
        check_config(config(**{"optimizer.momentum": 0.95}))


def test_rows_of_memory_tables_have_it_where_the_method_computes_two_gradients():
    base = table_config(config())
    assert Row("kd").config(base).optimizer.dot == 0.075
    assert Row("end_to_end").config(base).optimizer.dot is None
