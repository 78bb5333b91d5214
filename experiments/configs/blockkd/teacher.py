"""A teacher by the protocol of the field.

Command: python -m experiments.train --config=experiments/configs/blockkd/teacher.py:network=resnet56,data=cifar100 \
             --config.data.data_dir=DIR --workdir=runs/resnet56-cifar100
Options: network, data. The folder is then what --config.teacher.weights takes.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import protocol
from experiments.configs.options import parse_options


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, network="resnet56", data="cifar100")
    return protocol(**choice)
