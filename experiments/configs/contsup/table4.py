"""ContSup, table 4: contexts R0, E, and R1 to R16; ResNet-32 in 8 and 16 modules on CIFAR-10, softmax loss.

Command: python -m experiments.sweep --config=experiments/configs/contsup/table4.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/contsup/table4.py:k=16,context=R4
Options: k, context; k=1 is end to end.
Reference: Yu et al., arXiv 2312.07636, table 4. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup.paper import published
from experiments.configs.options import parse_options

ROWS = (
    "k=1",
    *(f"k=8,context={context}" for context in ("R0", "E", "R1", "R2", "R4", "R8")),
    *(f"k=16,context={context}" for context in ("R0", "E", "R1", "R2", "R4", "R8", "R16")),
)


def get_config(options: str = "") -> ConfigDict:
    return published(**parse_options(options, k=16, context="R1"))
