"""AugLocal with auxiliary depth d: each block is a module, but the last module has d + 1 blocks and the classifier.

With L blocks before the classifier there are L - d modules. The auxiliary networks can be larger than the network:
those of ResNet-32 with d = 3 have three times its parameters.

Command: python -m experiments.sweep --config=experiments/configs/local/auglocal.py --config.data.data_dir=DIR
Options: depth (d), network (resnet32 or resnet110), data (cifar10, stl10 or svhn_cropped), context.
Reference: Ma et al., ICLR 2024, arXiv 2402.17318. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.local.protocol import BLOCKS, successor
from experiments.configs.options import parse_options

ROWS = (
    *(f"network=resnet32,depth={depth}" for depth in (1, 2, 3, 5)),
    *(f"network=resnet110,depth={depth}" for depth in (3, 5, 6)),
)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, depth=2, network="resnet32", data="cifar10", context="R0")
    depth = choice.pop("depth")
    config = successor(k=BLOCKS[choice["network"]] - depth, auxiliary="auglocal", **choice)
    config.auglocal.depth = depth
    return config
