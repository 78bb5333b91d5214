"""Both at once: a ResNet-20 in modules that learn through a ResNet-56, beside Block-KD at the same memory; CIFAR-10.

Command: python -m experiments.sweep --config=experiments/configs/evidence/both.py:scale=short \
             --config.data.data_dir=DIR --config.teacher.weights=resnet56.npz --seeds=0,1,2
One row: python -m experiments.train --config=experiments/configs/evidence/both.py:method=contsup,k=3 \
             --config.data.data_dir=DIR --config.teacher.weights=resnet56.npz
Options: method (contsup is local distillation), k (3: the student's stages; otherwise modules of equal numbers of
blocks), context, accumulate, scale (published: 240 epochs at batch 64; short: see `scale.py`).

The teacher has shortcuts of option A, as in pytorch_resnet_cifar10. Block-KD with accumulated gradients needs as little
memory as the modules do.
Not trained to the end; docs/results.md has shorter runs.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd import cifar10
from experiments.configs.evidence.scale import accumulated, scaled
from experiments.configs.options import parse_options

STAGES = 3
ROWS = (
    "method=end_to_end",
    "method=kd",
    "method=block_kd",
    *(f"method=block_kd,accumulate={batches}" for batches in (2, 4)),
    *(f"method=contsup,k={k},context={context}" for k in (STAGES, 5, 10) for context in ("R0", "E", "R1E")),
)


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, method="contsup", k=STAGES, context="R0", accumulate=1, scale="published")
    config = cifar10.get_config(f"method={choice['method']}")
    if config.method == "contsup":
        config.local.context = choice["context"]
        if choice["k"] != STAGES:
            config.local.modules, config.local.boundaries = choice["k"], "equal"
    config = scaled(config, choice["scale"])
    return accumulated(config, choice["accumulate"]) if choice["accumulate"] > 1 else config
