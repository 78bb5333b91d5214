"""ContSup, figure 5: the ablation of context, loss and decoder; ResNet-32 in 2 to 16 modules on CIFAR-10.

Command: python -m experiments.sweep --config=experiments/configs/contsup/figure5.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/contsup/figure5.py:k=8,context=R1,decoder=true
Options: k, context, loss, decoder; 44 rows. The contrastive loss has no decoder and no R0, as in the paper.
Reference: Yu et al., arXiv 2312.07636, figure 5. Not trained to the end; docs/results.md has short runs, for example
800 steps of 32 images at K=16 on two CPU cores: test error 55.25 % with R0, 49.98 % with R1E.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup.paper import published
from experiments.configs.options import parse_options

CURVES = (
    *(f"context={context},loss=softmax" for context in ("R0", "E", "R1", "R1E")),
    *(f"context={context},loss=softmax,decoder=true" for context in ("R0", "E", "R1", "R1E")),
    *(f"context={context},loss=contrast" for context in ("E", "R1", "R1E")),
)
ROWS = tuple(f"k={k},{curve}" for curve in CURVES for k in (2, 4, 8, 16))


def get_config(options: str = "") -> ConfigDict:
    return published(**parse_options(options, k=16, context="R1E", loss="softmax", decoder=False))
