"""Configs of OFA-KD, and of pairs of transformers and convolutional networks."""

import pytest

from experiments.configs.blockkd import digits, ofa, vit
from experiments.from_config.experiment import build


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", ofa.ROWS)
def test_the_rows_of_ofa_are_accepted_by_the_factory(row):
    config = ofa.get_config(row)
    assert (config.epochs, config.batch_size, config.loss.label_smoothing) == (300, 1024, 0.1)
    build(config, fresh_teachers=True)


def test_the_published_protocol_of_ofa():
    """The authors' cnn.yaml."""
    optimizer = ofa.get_config().optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("sgd", 0.05, 2e-3)
    assert (optimizer.schedule, optimizer.warmup_epochs) == ("cosine", 3)
    student = ofa.get_config("pair=resnet50_cifar-vit_ti_4")
    assert (student.network.name, student.teacher.network) == ("vit_ti_4", "resnet50_cifar")
    assert student.optimizer.name == "adamw"


@pytest.mark.parametrize("pair", ["vit_ti_4", "vit_ti_4-", "vit_ti_4-resnet", "resnet8-vit-x"])
def test_unknown_pairs_are_refused(pair):
    with pytest.raises(ValueError, match=rf"unknown pair '{pair}': use vit_ti_4-resnet18_cifar, "):
        ofa.get_config(f"pair={pair}")


@pytest.mark.exhaustive
@pytest.mark.parametrize("pair", vit.PAIRS)
def test_pairs_on_imagenet_are_accepted_by_the_factory(pair):
    experiment = build(vit.get_config(f"pair={pair}"), fresh_teachers=True)
    assert experiment.method.objective.takes_tokens


@pytest.mark.parametrize(
    "options",
    [
        "method=ofa,teacher=vit_ti_2",
        pytest.param("method=ofa,student=vit_ti2", marks=pytest.mark.exhaustive),
        "method=block_kd,student=vit_ti_2",
        pytest.param("method=block_kd,teacher=vit_ti_2", marks=pytest.mark.exhaustive),
        pytest.param("method=contsup,teacher=vit_ti_2", marks=pytest.mark.exhaustive),
    ],
)
def test_pairs_on_the_digits_are_accepted_by_the_factory(options):
    assert build(digits.get_config(options), fresh_teachers=True).shape == (8, 8, 1)
