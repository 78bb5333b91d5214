"""Greedy supervised learning, a baseline of ContSup: no context, local heads of pooling and one linear layer (0c1f).

Command: python -m experiments.sweep --config=experiments/configs/contsup/greedy.py --config.data.data_dir=DIR
Options: k, network (resnet32 or resnet110), data (cifar10, stl10 or svhn_cropped).
Reference: Belilovsky et al., ICML 2019, as in InfoPro (Wang et al., ICLR 2021, table 2). Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup.paper import published
from experiments.configs.options import parse_options

ROWS = tuple(f"k={k}" for k in (2, 4, 8, 16))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, k=16, network="resnet32", data="cifar10")
    return published(context="R0", head="0c1f", **choice)
