"""ContSup with a vision transformer on ImageNet, in 2 or 4 modules.

Command: python -m experiments.train --config=experiments/configs/contsup/vit.py:network=vit_s16,k=4,context=R0 \
             --config.data.data_dir=DIR
Options: network, k, context; k=1 is end to end. On N devices: `--config.mesh.data=N`.

90 epochs of AdamW, batch 1024, rate 0.001 with cosine decay after 8 epochs (10,000 steps) of warm-up, weight decay 0.1
times the rate. The image encoder is pooled: see kd_local/models/vision_transformer.py.

Reference: Yu et al., arXiv 2312.07636, has no transformer; the setting is that of Beyer, Zhai and Kolesnikov (arXiv
2205.01580, ViT-S/16) without gradient clipping, RandAugment and mixup, and with weight decay on all parameters. Not
trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup import imagenet
from experiments.configs.options import parse_options


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, network="vit_s16", k=4, context="R1E")
    config = imagenet.get_config(",".join(f"{name}={value}" for name, value in choice.items()))
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_epochs = 8
    config.optimizer.warmup_rate = 0.0
    return config
