"""MAN++: MAN with a trained scale for each boundary, and with the stem as a module of its own.

k counts the modules that there are: the paper's K of 8, 16, 32 and 55 are 9, 16, 33 and 55. The head is `dgl_wide`,
without reconstruction. With infopro=true, reconstruction and heads are InfoPro's (2c2f); the stem has the head and the
contrastive loss of the authors' code.

Command: python -m experiments.sweep --config=experiments/configs/local/man_plus.py --config.data.data_dir=DIR
Options: k, network (resnet32 or resnet110), data (cifar10, stl10 or svhn_cropped), context, infopro.
Reference: Su et al., IEEE TPAMI 2026, arXiv 2507.16279. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.local.protocol import successor
from experiments.configs.options import parse_options

ROWS = tuple(
    f"network={network},k={k}{infopro}"
    for infopro in ("", ",infopro=true")
    for network, numbers in (("resnet32", (9, 16)), ("resnet110", (33, 55)))
    for k in numbers
)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, k=16, network="resnet32", data="cifar10", context="R0", infopro=False)
    infopro = choice.pop("infopro")
    config = successor(
        boundaries="man_plus",
        auxiliary="momentum",
        head="2c2f" if infopro else "dgl_wide",
        decoder=infopro,
        **choice,
    )
    if choice["k"] > 1:
        config.momentum.scale, config.momentum.faithful = "trained", infopro
    return config
