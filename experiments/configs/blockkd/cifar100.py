"""CIFAR-100: the usual teacher-student pairs of the literature, with Block-KD or another method.

Command: python -m experiments.train --config=experiments/configs/blockkd/cifar100.py:pair=resnet56-resnet20 \
             --config.data.data_dir=DIR --config.teacher.weights=PATH
Options: pair, method (end_to_end is the student alone).
Weights: mdistiller's file of the teacher, or the folder of a run of teacher.py.

`PUBLISHED` has the top-1 accuracies in percent of mdistiller's README. Not trained to the end.

Reference: Yu et al., arXiv 2411.01547; Zhao et al., CVPR 2022; for the pairs, Tian et al., ICLR 2020.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import taught
from experiments.configs.options import parse_options
from kd_local.errors import unknown

PUBLISHED = {  # pair: (KD, DKD)
    "resnet56-resnet20": (70.66, 71.97),
    "resnet110-resnet32": (73.08, 74.11),
    "resnet32x4-resnet8x4": (73.33, 76.32),
    "wrn_40_2-wrn_16_2": (74.92, 76.23),
    "wrn_40_2-wrn_40_1": (73.54, 74.81),
    "vgg13-vgg8": (72.98, 74.68),
    "resnet32x4-shufflenetv1": (74.07, 76.45),
    "wrn_40_2-shufflenetv1": (74.83, 76.70),
    "vgg13-mobilenetv2_half": (67.37, 69.71),
    "resnet50_cifar-mobilenetv2_half": (67.35, 70.35),
    "resnet32x4-shufflenetv2": (74.45, 77.07),
}

# DKD's beta by pair, as its authors set it.
BETA = {
    "resnet56-resnet20": 2.0,
    "resnet110-resnet32": 2.0,
    "wrn_40_2-wrn_16_2": 6.0,
    "wrn_40_2-wrn_40_1": 6.0,
}

ROWS = tuple(f"pair={pair},method={method}" for pair in PUBLISHED for method in ("kd", "dkd", "block_kd"))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, pair="resnet56-resnet20", method="block_kd")
    if choice["pair"] not in PUBLISHED:
        raise unknown("pair", choice["pair"], PUBLISHED)
    teacher, student = choice["pair"].split("-")
    config = taught(student, teacher, "cifar100", choice["method"])
    if config.method == "dkd":
        config.dkd.beta = BETA.get(choice["pair"], 8.0)
    return config
