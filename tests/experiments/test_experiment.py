"""Experiments that configs describe."""

import pytest

from experiments.configs.checks import read
from experiments.configs.contradictions import check_files
from experiments.configs.default import get_config
from experiments.from_config.experiment import build
from kd_local.contract import HasTeachers


@pytest.mark.usually("contsup-2")
@pytest.mark.parametrize(("method", "modules"), [("contsup", 2), ("end_to_end", None), ("block_kd", None)])
def test_modules_are_counted_for_methods_that_cut_the_network(method, modules):
    config = get_config()
    config.method = method
    config.network.name = "resnet8"
    config.local.modules = 2
    config.teacher.network = "resnet20"
    assert build(config, fresh_teachers=True).modules == modules


def test_modules_that_learn_through_a_teacher():
    config = get_config()
    config.network.name, config.teacher.network = "resnet8", "resnet14"
    config.local.update(modules=3, auxiliary="teacher", boundaries="stages", context="E")
    config.teacher_auxiliary.update(distance="dkd", last=False)
    built = build(config, fresh_teachers=True)
    assert isinstance(built.method, HasTeachers)
    assert built.boundaries == ("stage1/0", "stage2/0") and built.modules == 3
    assert built.method.rule.objective.distance == "dkd"
    assert [module.branch for module in built.method.cut_network.modules] == [None] * 3
    config.teacher_auxiliary.last = True
    assert build(config, fresh_teachers=True).method.cut_network.modules[-1].branch.end == 1
    config.local.auxiliary = "head"
    assert not isinstance(build(config, fresh_teachers=True).method, HasTeachers)
    config.local.modules, config.local.auxiliary, config.local.boundaries = 1, "teacher", "equal"  # not used
    config.local.context = "R0"
    assert not isinstance(build(config, fresh_teachers=True).method, HasTeachers)


def test_a_missing_teacher_and_several_teachers_are_refused():
    config = get_config()
    config.local.auxiliary = "teacher"
    with pytest.raises(ValueError, match="method 'contsup' needs a trained teacher"):
        check_files(config)
    config.teacher.network = "resnet8,resnet14"
    with pytest.raises(ValueError, match="2 teachers for local.auxiliary=teacher: give one"):
        check_files(config, shapes_only=True)


def test_the_name_of_an_earlier_method_is_refused_with_its_replacement():
    with pytest.raises(ValueError, match=r"use --config.method=contsup --config.local.auxiliary=teacher"):
        read("method", "local_distillation")


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


@pytest.mark.parametrize(("platform", "expected"), [("cpu", ("contexts",)), ("tpu", ("contexts",)), ("gpu", ())])
def test_contexts_are_recomputed_by_default_except_on_a_gpu(platform, expected):
    modules = build(get_config(), platform).method.cut_network.modules
    assert {module.remat for module in modules} == {expected}
