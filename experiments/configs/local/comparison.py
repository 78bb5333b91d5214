"""The methods of local learning side by side: ResNet-32, a module for each block, in the protocol of `protocol.py`.

Command: python -m experiments.sweep --config=experiments/configs/local/comparison.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/local/comparison.py:method=man_plus_e \
             --config.data.data_dir=DIR
Options: method.

Greedy SL has the head of InfoPro (`1c2f`), and DGL its own. The last module of AugLocal with depth d has d + 1 blocks.
The stem belongs to the first module of MAN, HPFF and MLAAN. With `--config.local.remat=none` context networks are kept,
which is faster on a CPU and needs more memory.
References: the other files of this folder, and those of `contsup/`. Not trained to the end; docs/results.md has shorter
runs.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.local import auglocal, dgl, hpff, man, man_plus, mlaan, predsim
from experiments.configs.local.protocol import BLOCKS, successor
from experiments.configs.options import parse_options
from kd_local.errors import unknown


def _single_blocks(**local: Any) -> ConfigDict:
    return successor(k=BLOCKS["resnet32"], network="resnet32", data="cifar10", **local)


METHODS: Mapping[str, Callable[[], ConfigDict]] = {
    "end_to_end": partial(successor, k=1, network="resnet32", data="cifar10"),
    "greedy": _single_blocks,
    "dgl": dgl.get_config,
    "predsim": predsim.get_config,
    "infopro": partial(_single_blocks, decoder=True),
    "contsup_e": partial(_single_blocks, context="E"),
    "contsup_r1e": partial(_single_blocks, context="R1E"),
    "auglocal_2": partial(auglocal.get_config, "depth=2"),
    "auglocal_3": partial(auglocal.get_config, "depth=3"),
    "man": man.get_config,
    "man_plus": man_plus.get_config,
    "hpff": hpff.get_config,
    "mlaan": mlaan.get_config,
    "auglocal_2_e": partial(auglocal.get_config, "depth=2,context=E"),
    "man_plus_e": partial(man_plus.get_config, "context=E"),
}
ROWS = tuple(f"method={method}" for method in METHODS)


def get_config(options: str = "") -> ConfigDict:
    method = parse_options(options, method="contsup_r1e")["method"]
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return METHODS[method]()
