"""ContSup, table 3: ResNet-110 in 2 to 16 modules on CIFAR-10, STL-10 and SVHN; R1E, contrastive and softmax loss.

Command: python -m experiments.sweep --config=experiments/configs/contsup/table3.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/contsup/table3.py:data=stl10,k=8,loss=contrast
Options: data, k, loss; k=1 is end to end, for comparison.
Differs from the default config in network, data, K, loss, the decoder and the hyper-parameters of `paper.py`.

Reference: Yu et al., arXiv 2312.07636, table 3. All its runs reconstruct the image as well; weights of the losses by
network, data and K. Of SVHN in 4 modules the last boundary's head has weight 1 (ixy_2), as in InfoPro's code: with the
authors' 0 every local head and all it teaches would have a gradient of zero. STL-10 has 10 classes, not their 100.
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
