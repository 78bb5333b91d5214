"""DGL with its own head, "mlp-sr" (`dgl`): pooling, 1x1 convolutions and hidden layers. Each block is a module.

The papers after ContSup compare with this baseline. contsup/dgl.py has another head.

Command: python -m experiments.sweep --config=experiments/configs/local/dgl.py --config.data.data_dir=DIR
Options: network (resnet32 or resnet110), data (cifar10, stl10 or svhn_cropped), context.
Reference: Belilovsky et al., "Decoupled greedy learning of CNNs", ICML 2020, in the protocol of `protocol.py`. Not
trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.local.protocol import BLOCKS, successor
from experiments.configs.options import parse_options

ROWS = tuple(f"network={network}" for network in BLOCKS)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, network="resnet32", data="cifar10", context="R0")
    return successor(k=BLOCKS[choice["network"]], head="dgl", **choice)
