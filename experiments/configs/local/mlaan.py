"""MLAAN: behind each pair of neighbouring modules, copies of later blocks lead to a linear head.

The authors' code is followed, which averages only the copies of the last boundary;
`--config.mlaan.faithful=false` averages the first copy of each boundary. ResNet-110 in 54 modules has leaping blocks by
a rule of this package, see `kd_local.local.mlaan.leaping_blocks`.

K is the number of modules that there are. The stem belongs to the first module.

Command: python -m experiments.sweep --config=experiments/configs/local/mlaan.py --config.data.data_dir=DIR
Options: network (resnet32 or resnet110), k (8 or 15; 32 or 54), data (cifar10, stl10 or svhn_cropped).
Reference: Zhang et al., AAAI 2025, arXiv 2406.16633. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.local.protocol import of_pairs
from experiments.configs.options import parse_options

ROWS = ("network=resnet32,k=8", "network=resnet32,k=15", "network=resnet110,k=32", "network=resnet110,k=54")


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, network="resnet32", k=15, data="cifar10")
    return of_pairs("mlaan", head="0c1f", **choice)
