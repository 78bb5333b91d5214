"""Experiments that configs describe."""

import pytest

from experiments.configs.default import get_config
from experiments.from_config.experiment import build


@pytest.mark.parametrize(
    ("method", "modules"), [("contsup", 2), ("end_to_end", None), ("block_kd", None), ("local_distillation", 3)]
)
def test_modules_are_counted_for_methods_that_cut_the_network(method, modules):
    config = get_config()
    config.method = method
    config.network.name = "resnet8"
    config.local.modules = 2
    config.teacher.network = "resnet20"
    assert build(config, fresh_teachers=True).modules == modules
