"""A vision transformer on ImageNet by ContSup, in 2 or 4 modules. Not run to its end here: no figures of ours.

Command: python -m experiments.train --config=experiments/configs/contsup/vit.py:vit_s16_k4 --config.data.data_dir=DIR
Options: vit_s16_k4 (if none), vit_s16_k2, vit_ti16_k4 or vit_ti16_k2, with context R1E, or another behind it:
vit_s16_k4_R0. The same network end to end: `--config.method=end_to_end`. Over N devices: `--config.mesh.data=N`.

90 epochs of AdamW, batch 1024, rate 0.001 with cosine decay after 8 epochs (10,000 steps) of warm-up, weight decay 0.1
times the rate. The image encoder is pooled: see kd_local/models/vision_transformer.py.

Reference: no table of Yu et al., arXiv 2312.07636, has a transformer; the setting is that of Beyer, Zhai and Kolesnikov
(arXiv 2205.01580, ViT-S/16), but for what the optimizer and augmentation here do not have: gradients clipped to norm 1,
weight decay on kernels only, RandAugment and mixup.
"""

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.contsup.imagenet import chosen

OPTIONS = tuple(f"{network}_k{k}" for network in ("vit_s16", "vit_ti16") for k in (4, 2))


def get_config(options: str = "") -> ConfigDict:
    config = default.get_config()
    config.network.name, config.local.modules, config.local.context = chosen(options or "vit_s16_k4", OPTIONS)
    config.epochs = 90
    config.batch_size = 1024
    config.data.name = "imagenet2012"
    config.local.image_encoder = "pooled"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 8
    config.optimizer.warmup_rate = 0.0
    return config
