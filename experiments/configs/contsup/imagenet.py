"""ContSup on ImageNet: ResNet-50 or ResNet-101 in 2 or 4 modules.

Command: python -m experiments.train --config=experiments/configs/contsup/imagenet.py:network=resnet101,k=2,context=R0 \
             --config.data.data_dir=DIR
Options: network, k, context; k=1 is end to end. On N devices: `--config.mesh.data=N`.

90 epochs of SGD with Nesterov momentum, batch 1024, rate 0.4 with cosine decay by step and no warm-up, weight decay
1e-4, softmax loss, no decoder. The image encoder is pooled, because the paper's (`--config.local.image_encoder=full`)
takes 5.6 billion multiply-adds for a boundary of 1024 channels, and ResNet-50 takes 4.1. At K=2, R1E and E are the
same.

Reference: Yu et al., arXiv 2312.07636, has no run on ImageNet; the setting is that of InfoPro's authors' code (Wang et
al., ICLR 2021), which decays by epoch. Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.options import parse_options


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, network="resnet50", k=2, context="R1E")
    config = default.get_config()
    config.network.name = choice["network"]
    config.epochs = 90
    config.batch_size = 1024
    config.data.name = "imagenet2012"
    if choice["k"] == 1:
        config.method = "end_to_end"
    else:
        config.local.modules, config.local.context = choice["k"], choice["context"]
        config.local.image_encoder = "pooled" if config.local.context.endswith("E") else "full"
    config.optimizer.learning_rate = 0.4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 0
    return config
