"""ContSup, table 1: contexts R0, E, R1 and R1E; ResNet-32 in 16 modules on CIFAR-10, softmax loss.

Command: python -m experiments.sweep --config=experiments/configs/contsup/table1.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/contsup/table1.py:context=R1E
Options: k, context; k=1 is end to end.
Reference: Yu et al., arXiv 2312.07636, table 1. Not trained to the end; 20 epochs of digits gave test errors of 1.39,
0.19, 1.57 and 0.46 % with the four contexts, and 1.02 % end to end (docs/results.md).
"""

from ml_collections import ConfigDict

from experiments.configs.contsup.paper import published
from experiments.configs.options import parse_options

ROWS = ("k=1", *(f"k=16,context={context}" for context in ("R0", "E", "R1", "R1E")))


def get_config(options: str = "") -> ConfigDict:
    return published(**parse_options(options, k=16, context="R1E"))
