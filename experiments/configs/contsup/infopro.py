"""InfoPro, a baseline of ContSup: no context; each module also reconstructs the image.

Command: python -m experiments.sweep --config=experiments/configs/contsup/infopro.py --config.data.data_dir=DIR
Options: k, network (resnet32 or resnet110), data (cifar10, stl10 or svhn_cropped), loss (softmax or contrast).
Reference: Wang et al., "Revisiting locally supervised learning", ICLR 2021, table 2. Not trained to the end; 20 epochs
of digits at K=16 gave a test error of 2.50 % (softmax) and 1.11 % (contrast), docs/results.md.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup.paper import published
from experiments.configs.options import parse_options

ROWS = tuple(f"k={k},loss={loss}" for loss in ("softmax", "contrast") for k in (2, 4, 8, 16))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, k=16, network="resnet32", data="cifar10", loss="softmax")
    return published(context="R0", decoder=True, **choice)
