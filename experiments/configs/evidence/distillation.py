"""Distillation: every objective of the package, and Block-KD with other distances; the protocol of mdistiller.

Command: python -m experiments.sweep --config=experiments/configs/evidence/distillation.py:pair=resnet56-resnet20 \
             --config.data.data_dir=DIR --config.teacher.weights=FILE --seeds=0,1,2
One row: python -m experiments.train --config=experiments/configs/evidence/distillation.py:method=kd \
             --config.data.data_dir=DIR --config.teacher.weights=FILE
Options: method, distance (of block_kd), pair, data (cifar100, cifar10), scale (published: 240 epochs at batch 64, or
ContSup's for vision transformers; short: see `scale.py`).

All rows have one pair, which is an option of the whole sweep, because the file of weights belongs to its teacher.
References: mdistiller (Zhao et al., CVPR 2022, arXiv 2203.08679); the docstrings of `kd_local.distill.objectives`. Not
trained to the end; docs/results.md has shorter runs.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd import cifar10, cifar100, vit
from experiments.configs.blockkd.protocol import taught
from experiments.configs.evidence.scale import scaled
from experiments.configs.objectives import DISTANCES, OBJECTIVES
from experiments.configs.options import parse_options
from kd_local.errors import unknown

PAIRS = ("resnet56-resnet20", "resnet32x4-resnet8x4", *vit.PAIRS)
DATA = ("cifar100", "cifar10")
ROWS = (
    "method=end_to_end",
    *(f"method={method}" for method in OBJECTIVES),
    *(f"method=block_kd,distance={distance}" for distance in DISTANCES if distance != "kd"),
)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, method="block_kd", distance="kd", pair=PAIRS[0], data=DATA[0], scale="published")
    for name, known in (("pair", PAIRS), ("data", DATA)):
        if choice[name] not in known:
            raise unknown(name, choice[name], known)
    config = _of_pair(choice["pair"], choice["data"], choice["method"])
    if config.method == "block_kd":
        config.block_kd.distance = choice["distance"]
    return scaled(config, choice["scale"])


def _of_pair(pair: str, data: str, method: str) -> ConfigDict:
    if pair in vit.PAIRS:
        config = vit.get_config(f"pair={pair},method={method}")
        config.data.name = data
        return config
    if data == "cifar100":
        return cifar100.get_config(f"pair={pair},method={method}")
    if pair == "resnet56-resnet20":
        return cifar10.get_config(f"method={method}")
    teacher, student = pair.split("-")
    return taught(student, teacher, data, method)
