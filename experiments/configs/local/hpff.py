"""HPFF: each pair of neighbouring modules has a strong loss, and each module alone has a weak one.

Variant `infopro`: heads 2c2f, and decoders of quadrants of the image. Variant `dgl`: DGL's heads, no decoder. The
authors' code is followed; `--config.hpff.faithful=false` gives the patches as the paper describes them.

K is the number of modules that there are: the papers' "K=16" and "K=55" are 15 and 54 here, because the stem belongs to
the first module.

Command: python -m experiments.sweep --config=experiments/configs/local/hpff.py --config.data.data_dir=DIR
Options: network (resnet32 or resnet110), k (8 or 15; 32 or 54), variant (infopro or dgl), data (cifar10, stl10 or
svhn_cropped).
Reference: Su et al., ECCV 2024, arXiv 2407.05638. Not trained to the end.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs.local.protocol import of_pairs
from experiments.configs.options import parse_options
from kd_local.errors import unknown

VARIANTS: dict[str, dict[str, Any]] = {
    "infopro": {"head": "2c2f", "decoder": True},
    "dgl": {"head": "dgl", "decoder": False},
}
CUTS = ("network=resnet32,k=8", "network=resnet32,k=15", "network=resnet110,k=32", "network=resnet110,k=54")
ROWS = tuple(f"{cut},variant={variant}" for variant in VARIANTS for cut in CUTS)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, network="resnet32", k=15, variant="infopro", data="cifar10")
    variant = choice.pop("variant")
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    return of_pairs("hpff", **choice, **VARIANTS[variant])
