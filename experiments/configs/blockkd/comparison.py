"""Block-KD beside its nearest relatives: CIFAR-10, ResNet-56 to ResNet-20 or ResNet-8, in the protocol of `cifar10.py`.

Command: python -m experiments.sweep --config=experiments/configs/blockkd/comparison.py:scale=short \
             --config.data.data_dir=DIR --config.teacher.weights=resnet56.npz --seeds=0,1,2
One row: python -m experiments.train --config=experiments/configs/blockkd/comparison.py:method=block_kd,distance=wttm \
             --config.data.data_dir=DIR --config.teacher.weights=resnet56.npz
Options: method, distance and directions (of block_kd), dot (DOT's delta; 0: one gradient), student, scale (published:
240 epochs; short: see `evidence/scale.py`).

FCFD and DKD have their authors' numbers for this pair on CIFAR-100, all others their defaults. As a distance, DKD has
its default numbers. FCFD has Nesterov momentum in its authors' protocol; here no row has it. A sweep with equal seconds
or multiply-adds of all rows: `--budget`.
Not trained to the end; docs/results.md has shorter runs.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd import cifar10
from experiments.configs.blockkd.cifar100 import BETA, FCFD
from experiments.configs.evidence.scale import scaled
from experiments.configs.options import parse_options

PAIR = "resnet56-resnet20"
ROWS = (
    *(f"method={method}" for method in ("end_to_end", "kd", "reviewkd", "fcfd", "crld")),
    *(
        f"method=block_kd,distance={distance},directions={directions}"
        for directions in ("student_to_teacher", "both")
        for distance in ("kd", "wttm", "dkd")
    ),
)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(
        options,
        method="block_kd",
        distance="kd",
        directions="student_to_teacher",
        dot=0.0,
        student="resnet20",
        scale="published",
    )
    config = cifar10.get_config(f"method={choice['method']},student={choice['student']}")
    config.optimizer.dot = choice["dot"] or None
    if config.method == "block_kd":
        config.block_kd.update(distance=choice["distance"], directions=choice["directions"])
    elif config.method == "dkd":
        config.dkd.beta = BETA[PAIR]
    elif config.method == "fcfd":
        feature_weight, mixture_weight, temperature = FCFD[PAIR]
        config.fcfd.update(feature_weight=feature_weight, mixture_weight=mixture_weight, temperature=temperature)
    return scaled(config, choice["scale"])
