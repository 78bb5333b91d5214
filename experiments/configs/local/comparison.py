"""The methods of local learning side by side: ResNet-32, a module for each block, in the protocol of `protocol.py`.

Command: python -m experiments.sweep --config=experiments/configs/local/comparison.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/local/comparison.py:method=man_plus_e \
             --config.data.data_dir=DIR
Options: method.

With `--config.local.remat=none` context networks are kept,
which is faster on a CPU and needs more memory.
References: the other files of this folder, and those of `contsup/`. Not trained to the end; docs/results.md has shorter
runs.
"""

from ml_collections import ConfigDict

from experiments.configs.local.methods import METHODS, method_config
from experiments.configs.local.protocol import successor
from experiments.configs.options import parse_options
from kd_local.errors import unknown

WHOLE = "end_to_end"
ROWS = tuple(f"method={method}" for method in (WHOLE, *METHODS))


def get_config(options: str = "") -> ConfigDict:
    method = parse_options(options, method="contsup_r1e")["method"]
    if method == WHOLE:
        return successor(k=1, network="resnet32", data="cifar10")
    if method not in METHODS:
        raise unknown("method", method, (WHOLE, *METHODS))
    return method_config(method)
