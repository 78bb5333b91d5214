"""DGL in InfoPro's and ContSup's tables, a baseline of ContSup: no context, and here InfoPro's local head (1c2f).

DGL's own head, with which later papers compare, is `dgl`: see experiments/configs/local/dgl.py.

Command: python -m experiments.sweep --config=experiments/configs/contsup/dgl.py --config.data.data_dir=DIR
Options: k, network (resnet32 or resnet110), data (cifar10, stl10 or svhn_cropped).
Reference: Belilovsky et al., ICML 2020, as in InfoPro (Wang et al., ICLR 2021, table 2). Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup.paper import published
from experiments.configs.options import parse_options

ROWS = tuple(f"k={k}" for k in (2, 4, 8, 16))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, k=16, network="resnet32", data="cifar10")
    return published(context="R0", head="1c2f", **choice)
