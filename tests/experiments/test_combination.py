"""The keys of a combination of objectives."""

import pytest

from experiments.configs.checks import check_used, flat_values, read
from experiments.configs.combination import combination
from experiments.configs.contradictions import check_files, check_warmups, remarks
from experiments.configs.default import get_config
from experiments.configs.uses import LABELS
from experiments.folders.workdirs import default_workdir
from experiments.from_config.experiment import build
from kd_local.distill import Combined


def config(objectives: str = "dkd:1,reviewkd:0.5", **values):
    made = get_config()
    made.update_from_flattened_dict(
        {"method": "combined", "combined.objectives": objectives, "teacher.network": "resnet14", **values}
    )
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dkd:1,reviewkd:0.5", {"dkd": 1.0, "reviewkd": 0.5}),
        (" kd , crd : 2", {"kd": 1.0, "crd": 2.0}),
        ("block_kd", {"block_kd": 1.0}),
    ],
)
def test_names_with_weights_are_read(text, expected):
    assert combination(text) == expected
    assert read("combined.objectives", text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dkdd:1", "combined.objectives: unknown objective 'dkdd': .*dkd"),
        ("dkd:1,", "unknown objective ''"),
        ("combined:1", "unknown objective 'combined'"),
        ("dkd:0", r"the weight of dkd is 0.0: use a number in \(0, 1e\+09\].*leave an objective of weight 0 out"),
        ("dkd:", "the weight of dkd is ''"),
        ("dkd:1:2", "the weight of dkd is '1:2'"),
        ("dkd:1,dkd:2", "dkd twice: give each objective once"),
        ("kd,simkd", "simkd deploys other blocks than the student's.*: use it alone, --config.method=simkd"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read("combined.objectives", text)


def test_a_config_gives_the_objectives_with_their_own_keys():
    asked = config(**{"dkd.alpha": 2.0, "reviewkd.max_middle": 8, "combined.ce_weight": 0.5})
    check_used(asked)
    objective = build(asked, fresh_teachers=True).method.objective
    assert isinstance(objective, Combined) and objective.names == ("dkd", "reviewkd") and objective.ce_weight == 0.5
    (dkd, one), (review, half) = objective.objectives
    assert (dkd.alpha, one, review.max_middle, half) == (2.0, 1.0, 8, 0.5)
    assert default_workdir(asked).name.startswith("combined-dkd-reviewkd-resnet8-digits-")


@pytest.mark.parametrize(
    ("objectives", "key", "message"),
    [
        ("dkd:1", "kd.weight", "kd.weight is 0.3, which has an effect only with method=kd, or combined with kd"),
        ("dkd:1", "dkd.ce_weight", "dkd.ce_weight is 0.3, which has an effect only with method=dkd: leave it out"),
        ("dkd:1", "simkd.weight", "simkd.weight is 0.3, which has an effect only with method=simkd: leave it out"),
    ],
)
def test_keys_that_a_combination_ignores_are_refused(objectives, key, message):
    with pytest.raises(ValueError, match=message):
        check_used(config(objectives, **{key: 0.3}))
    check_used(config("kd:1,dkd:1", **{"kd.weight": 0.3}))


def test_the_keys_of_a_combination_need_its_method():
    with pytest.raises(ValueError, match="combined.ce_weight is 0.5, which has an effect only with method=combined"):
        check_used(config(method="dkd", **{"combined.objectives": "dkd:1,reviewkd:1", "combined.ce_weight": 0.5}))


def test_a_cache_serves_combinations_of_logits():
    cached = {"teacher.cache": "/tmp/cache"}
    check_used(config("kd,dkd", **cached))
    with pytest.raises(ValueError, match="only with a method of distillation that reads only logits .*combined of"):
        check_used(config("kd,rkd", **cached))


def test_warm_ups_are_those_of_every_objective():
    asked = config("dkd,crd,reviewkd", epochs=3, **{"dkd.warmup_epochs": 4, "reviewkd.warmup_epochs": 6})
    with pytest.raises(ValueError, match="reviewkd.warmup_epochs is 6, but the run has 3 epochs"):
        check_warmups(asked, {"reviewkd.warmup_epochs"})
    assert [note.split(" is ")[0] for note in remarks(asked)[1:]] == ["dkd.warmup_epochs", "reviewkd.warmup_epochs"]


@pytest.mark.parametrize(
    ("objectives", "weight", "alpha", "expected"),
    [("kd", 1.0, 0.1, True), ("kd", 0.0, 0.1, False), ("block_kd", 0.0, 0.1, True), ("block_kd", 0.0, 0.0, False)],
)
def test_the_loss_of_labels(objectives, weight, alpha, expected):
    asked = config(objectives, **{"combined.ce_weight": weight, "block_kd.alpha": alpha})
    assert LABELS.holds(flat_values(asked)) == expected


def test_a_combination_needs_a_teacher():
    with pytest.raises(ValueError, match="teacher.weights is not set: method 'combined' needs a trained teacher"):
        check_files(config())
