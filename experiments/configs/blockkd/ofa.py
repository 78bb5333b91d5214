"""OFA-KD on CIFAR-100 between transformers and convolutional networks, in both directions.

Command: python -m experiments.train --config=experiments/configs/blockkd/ofa.py:pair=vit_ti_4-resnet18_cifar \
             --config.data.data_dir=DIR --config.teacher.weights=PATH
Options: pair (teacher first; any two networks), method. Teacher: blockkd/teacher.py:network=vit_ti_4,data=cifar100.

The published protocol for convolutional students: 300 epochs, batch 1024 (8 GPUs of 128), SGD, rate 0.05 with cosine
decay after 3 epochs of warm-up, weight decay 2e-3, label smoothing 0.1, all weights 1, eps 1. Its images are CIFAR's at
224x224, its teachers are trained on ImageNet, and its rate ends at 1e-3. Here images have 32x32, patches of
transformers 4x4, and the rate ends at 0. With patches of 4x4 the exits merge nothing: the grid is 8x8. Users of the
authors' code report other results than the published ones, for which the authors advise ofa.exits_weight=0.1.

Reference: Hao et al., "One-for-all: bridge the gap between heterogeneous architectures in knowledge distillation"
(NeurIPS 2023), and its code. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import taught
from experiments.configs.options import parse_options
from kd_local.choices.networks import NETWORKS
from kd_local.errors import unknown

PAIRS = ("vit_ti_4-resnet18_cifar", "resnet50_cifar-vit_ti_4", "resnet50_cifar-vit_ti4", "vit_ti_4-mobilenetv2_half")
ROWS = tuple(f"pair={pair},method={method}" for pair in PAIRS for method in ("kd", "block_kd", "ofa"))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, pair=PAIRS[0], method="ofa")
    teacher, separator, student = choice["pair"].partition("-")
    if not separator or not {teacher, student} <= set(NETWORKS):
        raise unknown("pair", choice["pair"], PAIRS)
    config = taught(student, teacher, "cifar100", choice["method"])
    config.epochs = 300
    config.batch_size = 1024
    config.loss.label_smoothing = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 3
    config.optimizer.milestones = ()
    if config.optimizer.name == "sgd":
        config.optimizer.update(learning_rate=0.05, weight_decay=2e-3)
    return config
