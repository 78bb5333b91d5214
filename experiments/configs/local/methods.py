"""The methods of local learning with published cuts, and the same methods with any number of modules.

All have the protocol of `protocol.py`. Greedy SL has the head of InfoPro (`1c2f`), and DGL its own. The last module of
AugLocal with depth d has d + 1 blocks. The stem belongs to the first module of MAN, HPFF and MLAAN. The two methods
`..._e` have the image as context.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.local import auglocal, dgl, hpff, man, man_plus, mlaan, predsim
from experiments.configs.local.protocol import BLOCKS, successor
from kd_local.errors import unknown

MOST = {"resnet32": {"man": 15, "man_plus": 16}, "resnet110": {"man": 54, "man_plus": 55}}
"""The largest number of modules of a table, by the rule for its boundaries."""


def _single_blocks(network: str, **local: Any) -> ConfigDict:
    return successor(k=BLOCKS[network], network=network, data="cifar10", **local)


def _of(get_config: Callable[[str], ConfigDict], options: str, network: str) -> ConfigDict:
    return get_config(",".join(filter(None, [f"network={network}", options])))


def _table(get_config: Callable[[str], ConfigDict], rule: str, options: str, network: str) -> ConfigDict:
    return _of(get_config, ",".join(filter(None, [f"k={MOST[network][rule]}", options])), network)


METHODS: Mapping[str, Callable[[str], ConfigDict]] = {
    "greedy": _single_blocks,
    "dgl": partial(_of, dgl.get_config, ""),
    "predsim": partial(_of, predsim.get_config, ""),
    "infopro": partial(_single_blocks, decoder=True),
    "contsup_e": partial(_single_blocks, context="E"),
    "contsup_r1e": partial(_single_blocks, context="R1E"),
    "auglocal_2": partial(_of, auglocal.get_config, "depth=2"),
    "auglocal_3": partial(_of, auglocal.get_config, "depth=3"),
    "man": partial(_table, man.get_config, "man", ""),
    "man_plus": partial(_table, man_plus.get_config, "man_plus", ""),
    "hpff": partial(_table, hpff.get_config, "man", ""),
    "mlaan": partial(_table, mlaan.get_config, "man", ""),
    "auglocal_2_e": partial(_of, auglocal.get_config, "depth=2,context=E"),
    "man_plus_e": partial(_table, man_plus.get_config, "man_plus", "context=E"),
}
"""By name, functions of the network: resnet32 or resnet110."""


def method_config(method: str, network: str = "resnet32", k: int = 0) -> ConfigDict:
    """The config of a method on CIFAR-10.

    Args:
        method: one of `METHODS`.
        network: resnet32 or resnet110.
        k: the number of modules, of equal numbers of blocks; 0: the cut with the most modules that is published.

    Raises:
        ValueError: the method or the network is unknown.
    """
    for what, name, known in (("method", method, METHODS), ("network", network, MOST)):
        if name not in known:
            raise unknown(what, name, known)
    config = METHODS[method](network)
    if k:
        config.local.modules, config.local.boundaries = k, "equal"
    return config
