"""The methods of local learning side by side: ResNet-32, in the protocol of `protocol.py`.

Command: python -m experiments.sweep --config=experiments/configs/local/comparison.py --config.data.data_dir=DIR
One row: python -m experiments.train --config=experiments/configs/local/comparison.py:method=man_plus_e \
             --config.data.data_dir=DIR
Options: method, k (0: the cut with the most modules that is published, a module for each block; otherwise modules of
equal numbers of blocks).

With `--config.local.remat=none` context networks are kept, which is faster on a CPU and needs more memory.
`evidence/local.py` has the same rows beside those of end to end at the same memory, and a short scale.
References: the other files of this folder, and those of `contsup/`. Not trained to the end; docs/results.md has shorter
runs, on CIFAR-10 and, in minutes, on the digits.
"""

from ml_collections import ConfigDict

from experiments.configs.local.methods import METHODS, method_config
from experiments.configs.local.protocol import successor
from experiments.configs.options import parse_options
from kd_local.errors import unknown

WHOLE = "end_to_end"
ROWS = tuple(f"method={method}" for method in (WHOLE, *METHODS))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, method="contsup_r1e", k=0)
    method = choice["method"]
    if method == WHOLE:
        return successor(k=1, network="resnet32", data="cifar10")
    if method not in METHODS:
        raise unknown("method", method, (WHOLE, *METHODS))
    return method_config(method, k=choice["k"])
