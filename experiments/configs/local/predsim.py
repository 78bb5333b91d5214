"""PredSim: each block is a module, with a similarity loss and a linear classifier of pooled features.

Command: python -m experiments.sweep --config=experiments/configs/local/predsim.py --config.data.data_dir=DIR
Options: network (resnet32 or resnet110), data (cifar10, stl10 or svhn_cropped), context.
Reference: Nøkland and Eidnes, "Training neural networks with local error signals", ICML 2019, in the protocol of
`protocol.py` and with the weights of AugLocal's code (0.99 and 0.01). Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.local.protocol import BLOCKS, successor
from experiments.configs.options import parse_options

ROWS = tuple(f"network={network}" for network in BLOCKS)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, network="resnet32", data="cifar10", context="R0")
    return successor(k=BLOCKS[choice["network"]], head="pool", loss="predsim", **choice)
