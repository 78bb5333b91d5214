"""Local learning: every method of the package, with end to end at the same memory; CIFAR-10, the common protocol.

Command: python -m experiments.sweep --config=experiments/configs/evidence/local.py:scale=short \\
             --config.data.data_dir=DIR --rows=resnet32 --seeds=0,1,2
One row: python -m experiments.train --config=experiments/configs/evidence/local.py:method=man,k=4 \\
             --config.data.data_dir=DIR
Options: method, network, k (0: the cut with the most modules that is published; otherwise modules of equal numbers of
blocks), accumulate, scale (published: 400 epochs at batch 1024; short: see `scale.py`).

ResNet-32 with a module for each block and in 4 modules; ResNet-110 in 54 and 8 modules. The rows of `end_to_end` are
what a user can do with the same memory: recompute the activations, or accumulate the gradients of smaller batches. With
`--config.local.remat=none` context networks are kept, which is faster on a CPU and needs more memory.
References: the files of `local/` and `contsup/`. Not trained to the end; docs/results.md has shorter runs.
"""

from ml_collections import ConfigDict

from experiments.configs.evidence.scale import accumulated, scaled
from experiments.configs.local.methods import METHODS, method_config
from experiments.configs.local.protocol import successor
from experiments.configs.options import parse_options

WHOLE, RECOMPUTED = "end_to_end", "end_to_end_remat"
MODULES = {"resnet32": (0, 4), "resnet110": (54, 8)}
ROWS = tuple(
    f"network={network},{row}"
    for network, numbers in MODULES.items()
    for row in (
        f"method={WHOLE}",
        f"method={RECOMPUTED}",
        *(f"method={WHOLE},accumulate={batches}" for batches in (2, 4, 8, 16)),
        *(f"method={method},k={k}" for k in numbers for method in METHODS),
    )
)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, method="contsup_r1e", network="resnet32", k=0, accumulate=1, scale="published")
    method, network = choice["method"], choice["network"]
    if method in (WHOLE, RECOMPUTED):
        config = successor(k=1, network=network, data="cifar10")
        config.end_to_end.remat = method == RECOMPUTED
    else:
        config = method_config(method, network, choice["k"])
    config = scaled(config, choice["scale"])
    return accumulated(config, choice["accumulate"]) if choice["accumulate"] > 1 else config
