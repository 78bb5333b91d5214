"""CIFAR-10, ResNet-56 to ResNet-20 or ResNet-8, with a teacher of option A shortcuts (pytorch_resnet_cifar10).

Command: python -m experiments.train --config=experiments/configs/blockkd/cifar10.py:method=kd \
             --config.data.data_dir=DIR --config.teacher.weights=resnet56.npz
Options: method (contsup: local distillation), student. Images are normalised as the teacher expects; the
protocol is that of CIFAR-100.
Not trained to the end; six epochs on one H100 gave a test error of 17.69 % with kd and 15.88 % with block_kd (mean of
three seeds, docs/results.md).
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import taught
from experiments.configs.options import parse_options

ROWS = tuple(f"method={method}" for method in ("end_to_end", "kd", "dkd", "reviewkd", "block_kd", "contsup"))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, method="block_kd", student="resnet20")
    config = taught(choice["student"], "resnet56", "cifar10", choice["method"])
    if config.method != "end_to_end":
        config.teacher.shortcut = "padding"
    config.data.mean = "0.485,0.456,0.406"
    config.data.std = "0.229,0.224,0.225"
    return config
