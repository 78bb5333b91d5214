"""CIFAR-100: the usual teacher-student pairs of the literature, with Block-KD or another method.

Command: python -m experiments.train --config=experiments/configs/blockkd/cifar100.py:pair=resnet56-resnet20 \
             --config.data.data_dir=DIR --config.teacher.weights=PATH
Options: pair, method (end_to_end is the student alone).
Weights: mdistiller's file of the teacher, or the folder of a run of teacher.py.
With method=fcfd the optimizer has Nesterov's momentum, as in its authors' protocol.

A sweep of `ROWS` draws the published errors of each pair (experiments/published/distillation.py) as dashed lines. The
option takes every pair that has some. Not trained to the end.

Reference: Yu et al., arXiv 2411.01547; Zhao et al., CVPR 2022; Liu et al., arXiv 2304.11832 (FCFD);
for the pairs, Tian et al., ICLR 2020.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import taught
from experiments.configs.options import parse_options
from experiments.published.distillation import published_pairs
from kd_local.errors import unknown

PAIRS = (
    "resnet56-resnet20",
    "resnet110-resnet32",
    "resnet32x4-resnet8x4",
    "wrn_40_2-wrn_16_2",
    "wrn_40_2-wrn_40_1",
    "vgg13-vgg8",
    "resnet32x4-shufflenetv1",
    "wrn_40_2-shufflenetv1",
    "vgg13-mobilenetv2_half",
    "resnet50_cifar-mobilenetv2_half",
    "resnet32x4-shufflenetv2",
)
"""The pairs of the sweep."""

# DKD's beta by pair, as its authors set it.
BETA = {
    "resnet56-resnet20": 2.0,
    "resnet110-resnet32": 2.0,
    "wrn_40_2-wrn_16_2": 6.0,
    "wrn_40_2-wrn_40_1": 6.0,
}

# FCFD's w2, c_mix and t by pair, as its authors set them. Pairs that they do not give have the class's defaults.
FCFD = {
    "resnet56-resnet20": (0.02, 1.0, 4.0),
    "wrn_40_2-wrn_16_2": (5.0, 0.2, 4.0),
    "resnet50_cifar-mobilenetv2_half": (5.0, 1.0, 8.0),
    "resnet32x4-shufflenetv1": (5.0, 1.0, 8.0),
    "resnet32x4-shufflenetv2": (5.0, 1.0, 8.0),
}

ROWS = tuple(f"pair={pair},method={method}" for pair in PAIRS for method in ("kd", "dkd", "block_kd"))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, pair="resnet56-resnet20", method="block_kd")
    if choice["pair"] not in published_pairs("cifar100"):
        raise unknown("pair", choice["pair"], published_pairs("cifar100"))
    teacher, student = choice["pair"].split("-")
    config = taught(student, teacher, "cifar100", choice["method"])
    if config.method == "dkd":
        config.dkd.beta = BETA.get(choice["pair"], 8.0)
    if config.method == "fcfd":
        config.optimizer.nesterov = True
        feature_weight, mixture_weight, temperature = FCFD.get(choice["pair"], (5.0, 1.0, 4.0))
        config.fcfd.update(feature_weight=feature_weight, mixture_weight=mixture_weight, temperature=temperature)
    return config
