"""Experiments that configs describe."""

import pytest

from experiments.configs.default import get_config
from experiments.from_config.experiment import build


@pytest.mark.usually("local_distillation-3")
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


@pytest.mark.parametrize(
    ("rule", "modules", "first"), [("single", 5, "stem"), ("man", 15, "stage1/0"), ("man_plus", 9, "stem")]
)
def test_rules_for_boundaries(rule, modules, first):
    config = get_config()
    config.network.name, config.local.boundaries, config.local.modules = "resnet32", rule, modules
    config.local.context = "R0"
    boundaries = build(config).boundaries
    assert boundaries[0] == first and len(boundaries) == modules - 1


@pytest.mark.parametrize("method", ["end_to_end", "contsup"])
def test_the_loss_of_the_labels_is_that_of_the_config(method):
    config = get_config()
    config.method, config.loss.label_smoothing, config.loss.class_weights = method, 0.1, "balanced"
    built = build(config).method
    loss = built.task_loss if method == "end_to_end" else built.cut_network.modules[0].loss
    assert loss.label_smoothing == 0.1 and len(loss.class_weights) == 10 and min(loss.class_weights) > 0.9
    assert build(config, fresh_teachers=True) is not None
    for text, error in (
        ("1,2", "loss.class_weights has 2 numbers for 10"),
        ("1,x", "loss.class_weights is '1,x': use"),
    ):
        config.loss.class_weights = text
        with pytest.raises(ValueError, match=error):
            build(config)
