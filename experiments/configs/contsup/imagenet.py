"""ContSup on ImageNet: ResNet-50 or ResNet-101 in 2 or 4 modules. Not run to its end here: no figures of ours.

Command: python -m experiments.train --config=experiments/configs/contsup/imagenet.py:resnet101_k2 \
             --config.data.data_dir=DIR
Options: resnet50_k2 (if none), resnet50_k4, resnet101_k2 or resnet101_k4, with context R1E, or another behind it:
resnet50_k4_R0. The same network end to end: `--config.method=end_to_end`. Over N devices: `--config.mesh.data=N`.

90 epochs of SGD with Nesterov momentum, batch 1024, rate 0.4 with cosine decay (by step here, by epoch there) and no
warm-up; weight decay 1e-4; softmax loss without a decoder. The image encoder is pooled: the paper's, at 224x224, takes
5.6 billion multiply-adds for a boundary of 1024 channels, more than ResNet-50's 4.1; it is had by
`--config.local.image_encoder=full`. With K=2 R1E is the same as E.

Reference: Yu et al., arXiv 2312.07636, whose authors' code has no run on ImageNet; the setting is that of InfoPro (Wang
et al., ICLR 2021), the ImageNet commands of its authors' code, which has ResNet-101 in 2 modules.
"""

import re
from collections.abc import Collection

from ml_collections import ConfigDict

from experiments.configs import default
from kd_local.errors import unknown

OPTIONS = tuple(f"{network}_k{k}" for network in ("resnet50", "resnet101") for k in (2, 4))


def chosen(options: str, choices: Collection[str]) -> tuple[str, int, str]:
    """Network, K and context of an option such as `resnet50_k4`, or `resnet50_k4_R0`."""
    match = re.fullmatch(r"(\w+)_k(\d+)(?:_(\w+))?", options)
    if match is None or f"{match[1]}_k{match[2]}" not in choices:
        raise unknown("option", options, choices)
    return match[1], int(match[2]), match[3] or "R1E"


def get_config(options: str = "") -> ConfigDict:
    config = default.get_config()
    config.network.name, config.local.modules, config.local.context = chosen(options or "resnet50_k2", OPTIONS)
    config.epochs = 90
    config.batch_size = 1024
    config.data.name = "imagenet2012"
    config.local.image_encoder = "pooled"
    config.optimizer.learning_rate = 0.4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 0
    return config
