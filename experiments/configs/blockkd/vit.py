"""Block-KD on ImageNet from a ResNet-50 to a vision transformer, with or without a class token, or the reverse.

Command: python -m experiments.train --config=experiments/configs/blockkd/vit.py:pair=resnet50-vit_s16 \
             --config.data.data_dir=DIR --config.teacher.weights=resnet50.pth
Options: pair (one of `PAIRS`, teacher first), method.
Weights: torchvision's file of the teacher, or the folder of a run. On N devices: `--config.mesh.data=N`.

Optimizer, schedule and batch are those of contsup/vit.py for a transformer, those of contsup/imagenet.py for a ResNet.
The weights of Block-KD are those of imagenet.py. A quarter of a transformer's depth is a stage. A stone connects the
student's features after a stage, resized, with the teacher's stage of the same number.

Reference: Yu et al., arXiv 2411.01547, for the method; Beyer, Zhai and Kolesnikov, arXiv 2205.01580, for the
training. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup import imagenet, vit
from experiments.configs.options import parse_options
from kd_local.errors import unknown

PAIRS = ("resnet50-vit_s16", "resnet50-vit_ti16", "resnet50-vit_ti_16", "vit_s_16-resnet18", "vit_b_16-resnet50")


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, pair=PAIRS[0], method="block_kd")
    if choice["pair"] not in PAIRS:
        raise unknown("pair", choice["pair"], PAIRS)
    teacher, student = choice["pair"].split("-")
    base = vit if student.startswith("vit") else imagenet
    config = base.get_config(f"network={student},k=1")
    config.method = choice["method"]
    if config.method != "end_to_end":
        config.teacher.network = teacher
    if config.method == "block_kd":
        config.block_kd.update(alpha=0.5, beta=0.5, gamma=0.5, temperature=1.0)
    return config
