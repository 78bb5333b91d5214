"""MAN: a trained twin and a moving average of the next block before each head, with the cuts of the paper.

k counts the modules that there are: the paper's K of 8, 16, 32 and 55 are 8, 15, 32 and 54, since its stem belongs to
the first module. Reconstruction and heads are InfoPro's (2c2f). With decoder=false, each module has the head alone.

Command: python -m experiments.sweep --config=experiments/configs/local/man.py --config.data.data_dir=DIR
Options: k, network (resnet32 or resnet110), data (cifar10, stl10 or svhn_cropped), context, decoder.
Reference: Su et al., ECCV 2024, arXiv 2407.05623. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.local.protocol import successor
from experiments.configs.options import parse_options

ROWS = (
    *(f"network=resnet32,k={k}" for k in (8, 15)),
    *(f"network=resnet110,k={k}" for k in (32, 54)),
)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, k=15, network="resnet32", data="cifar10", context="R0", decoder=True)
    return successor(boundaries="man", auxiliary="momentum", head="2c2f", **choice)
