"""Published results: their networks exist, each has one source, and figures that others quote are left out."""

from collections import Counter

import pytest

from experiments.configs.blockkd import cifar100, imagenet
from experiments.configs.objectives import OBJECTIVES
from experiments.published.distillation import (
    CIFAR100,
    IMAGENET,
    TEACHER,
    Published,
    chosen,
    published_pairs,
    published_results,
)
from experiments.published.local import END_TO_END
from kd_local.choices.networks import NETWORKS


def results_of(data: str, pair: str) -> tuple[Published, ...]:
    teacher, student = pair.split("-")
    return published_results(data, student=student, teacher=teacher)


EVERY = [result for data in (CIFAR100, IMAGENET) for pair in published_pairs(data) for result in results_of(data, pair)]


def test_the_configs_have_published_pairs():
    assert set(cifar100.PAIRS) <= set(published_pairs(CIFAR100))
    assert tuple(imagenet.BETA) == published_pairs(IMAGENET)
    for pair in published_pairs(CIFAR100):
        assert cifar100.get_config(f"pair={pair}").network.name == pair.partition("-")[2]
    with pytest.raises(ValueError, match="unknown pair 'resnet8-resnet20'"):
        cifar100.get_config("pair=resnet8-resnet20")


def test_every_result_has_known_networks_one_source_and_a_protocol():
    assert {name for result in EVERY for name in (result.student, result.teacher)} <= set(NETWORKS)
    keys = Counter((result.data, result.student, result.teacher, result.method) for result in EVERY)
    assert max(keys.values()) == 1
    for result in EVERY:
        assert "/" in result.source.name and result.source.paper and 50 < result.accuracy < 90
        assert result.epochs is not None or result.data == IMAGENET
        assert (result.epochs, result.views) in ((240, 1), (480, 2)) or result.data == IMAGENET
        assert (result.views == 2) == result.method.startswith("MLKD")


def test_methods_whose_figures_are_known_from_others_alone_are_left_out():
    methods = {result.method for result in EVERY}
    assert not methods & {"FCFD", "NKD", "RLD", "LDRLD", "EA-KD", "CAT-KD"}
    assert methods >= {
        "KD",
        "DKD",
        "DKD + LS",
        "MLKD + LS",
        "CRD",
        "ReviewKD",
        "SimKD",
        "DIST",
        "TTM",
        "WTTM",
        "SD-DKD",
    }


def test_objectives_have_the_names_of_configs():
    names = {result.objective for result in EVERY} - {None}
    assert {"kd", "dkd", "mlkd_two_views", "ttm", "wttm", "sd_dkd", "crd", "simkd"} <= names <= set(OBJECTIVES)


@pytest.mark.parametrize(
    ("data", "pair", "method", "accuracy", "source"),
    [
        (CIFAR100, "resnet56-resnet20", "KD", 70.66, "HobbitLong/RepDistiller"),
        (CIFAR100, "resnet110-resnet20", "WTTM + ITRD", 72.20, "zkxufo/TTM"),
        (CIFAR100, "wrn_40_2-wrn_40_1", "SimKD", 75.56, "OSVAI/NORM"),
        (CIFAR100, "vgg13-vgg8", "KD + DOT", 73.77, "megvii-research/mdistiller"),
        (CIFAR100, "resnet32x4-resnet8x4", "MLKD + LS", 78.28, "sunshangquan/logit-standardization-KD"),
        (CIFAR100, "resnet50_cifar-vgg8", "SD-DKD", 75.86, "shicaiwei123/SDD-CVPR2024"),
        (CIFAR100, "wrn_40_2-shufflenetv1", "DKD", 76.70, "zkxufo/TTM"),
        (CIFAR100, "wrn_40_2-mobilenetv2_half", END_TO_END, 64.60, "HobbitLong/RepDistiller"),
        (CIFAR100, "resnet50_cifar-vgg8", TEACHER, 79.34, "HobbitLong/RepDistiller"),
        (IMAGENET, "resnet50-mobilenetv1", "DIST", 73.24, "hunto/DIST_KD"),
        (IMAGENET, "resnet34-resnet18", "KD", 71.03, "megvii-research/mdistiller"),
        (IMAGENET, "resnet34-resnet18", END_TO_END, 69.76, "zkxufo/TTM"),
    ],
)
def test_figures_of_the_sources(data, pair, method, accuracy, source):
    (result,) = [result for result in results_of(data, pair) if result.method == method]
    assert (result.accuracy, result.source.name) == (accuracy, source)


def test_a_sweep_is_compared_with_its_own_methods_the_usual_ones_and_the_best():
    results = results_of(CIFAR100, "vgg13-vgg8")
    methods = [result.method for result in chosen(results, {"wttm", "block_kd"})]
    assert methods == [END_TO_END, TEACHER, "KD", "MLKD + LS", "WTTM"]
    assert chosen((), {"kd"}) == [] == list(results_of(CIFAR100, "vgg13-resnet8"))
