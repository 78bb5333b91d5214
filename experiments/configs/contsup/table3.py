"""ContSup, table 3: ResNet-110 in 2 to 16 modules on CIFAR-10, STL-10 and SVHN; R1E, contrastive and softmax loss.

Command: python -m experiments.sweep --config=experiments/configs/contsup/table3.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/contsup/table3.py:data=stl10,k=8,loss=contrast
Options: data, k, loss; k=1 is end to end.
Reference: Yu et al., arXiv 2312.07636, table 3. Not trained to the end. All rows reconstruct the image. The last
boundary's head on SVHN in 4 modules has weight 1 (ixy_2), as in InfoPro's code. With the authors' value, 0, the
gradient of every local head would be zero. STL-10 has 10 classes here; the authors' code has 100.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup.paper import published
from experiments.configs.options import parse_options

ROWS = tuple(
    row
    for data in ("cifar10", "stl10", "svhn_cropped")
    for row in (
        f"data={data},k=1",
        *(f"data={data},k={k},loss={loss}" for loss in ("contrast", "softmax") for k in (2, 4, 8, 16)),
    )
)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, data="cifar10", k=16, loss="contrast")
    return published(network="resnet110", context="R1E", decoder=True, **choice)
