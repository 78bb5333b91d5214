"""ContSup, table 2: ResNet-32 in 2 to 16 modules on CIFAR-10; contexts E and R1E, contrastive and softmax loss.

Command: python -m experiments.sweep --config=experiments/configs/contsup/table2.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/contsup/table2.py:k=8,context=R1E,loss=contrast
Options: k, context, loss; k=1 is end to end. At K=2, E and R1E are the same.
Reference: Yu et al., arXiv 2312.07636, table 2. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup.paper import published
from experiments.configs.options import parse_options

ROWS = (
    "k=1",
    *(
        f"k={k},context={context},loss={loss}"
        for context in ("E", "R1E")
        for loss in ("contrast", "softmax")
        for k in (2, 4, 8, 16)
    ),
)


def get_config(options: str = "") -> ConfigDict:
    return published(**parse_options(options, k=16, context="R1E", loss="softmax"))
