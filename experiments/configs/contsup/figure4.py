"""ContSup, figure 4: boundaries that balance the modules' memory; context E, contrastive loss, CIFAR-10.

Command: python -m experiments.sweep --config=experiments/configs/contsup/figure4.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/contsup/figure4.py:network=resnet110,k=3
Options: network, k. The authors' commands for ResNet-32 omit the flag for balanced boundaries; these rows set it.
Reference: Yu et al., arXiv 2312.07636, figure 4. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup.paper import published
from experiments.configs.options import parse_options

ROWS = (
    *(f"network=resnet32,k={k}" for k in (2, 4, 8, 16)),
    *(f"network=resnet110,k={k}" for k in (2, 3, 4)),
)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, network="resnet32", k=4)
    return published(context="E", loss="contrast", boundaries="published", **choice)
