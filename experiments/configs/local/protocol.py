"""The protocol of AugLocal, MAN, HPFF, MLAAN and MAN++ for CIFAR-10, SVHN and STL-10, which their baselines share.

ResNet-32 or ResNet-110; SGD with Nesterov momentum 0.9 and weight decay 1e-4 on all parameters; 400 epochs of InfoPro's
cosine schedule with 10 epochs of warm-up from 0.01; learning rate 0.8 at batch 1024, or 0.1 at batch 128 for STL-10. No
context. ContSup and InfoPro train for 160 epochs, so errors of the two groups of papers have other baselines.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.contsup.paper import published

BLOCKS = {"resnet32": 16, "resnet110": 55}
"""The number of blocks before the classifier, which is the number of modules if each block is a module."""


def successor(*, k: int, network: str, data: str, boundaries: str = "single", **local: Any) -> ConfigDict:
    """The config of a run: K modules, or with K = 1 the same network end to end.

    Args:
        k: the number of modules that there are.
        network: resnet32 or resnet110.
        data: cifar10, stl10 or svhn_cropped.
        boundaries: the rule for boundaries.
        local: other keys of `config.local`.
    """
    config = published(k=k, network=network, data=data, boundaries=boundaries)
    config.epochs = 400
    if k > 1:
        config.local.update(local)
    return config


def of_pairs(method: str, *, k: int, network: str, data: str, **local: Any) -> ConfigDict:
    """The config of a run of HPFF or MLAAN with the boundaries of their authors, see `man_boundaries`.

    Args:
        method: hpff or mlaan.
        k: the number of modules that there are: 8 or 15 for resnet32, 32 or 54 for resnet110.
        network, data: see `successor`.
        local: other keys of `config.local`.
    """
    config = successor(k=k, network=network, data=data, boundaries="man", **local)
    config.method = method
    config.local.context = default.get_config().local.context  # these methods have none
    return config
