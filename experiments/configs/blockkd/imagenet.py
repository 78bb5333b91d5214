"""Block-KD on ImageNet: the two usual teacher-student pairs of the literature.

Command: python -m experiments.train --config=experiments/configs/blockkd/imagenet.py:pair=resnet34-resnet18 \
             --config.data.data_dir=DIR --config.teacher.weights=resnet34.pth
A sweep draws the published errors (experiments/published/distillation.py) as dashed lines.
Options: pair (resnet34-resnet18 or resnet50-mobilenetv1, teacher first), method.
Weights: torchvision's file of the teacher, or the folder of a run. On N devices: `--config.mesh.data=N`.

100 epochs of SGD without Nesterov, batch 512, rate 0.2, multiplied by 0.1 at 30, 60 and 90, weight decay 1e-4. The
paper does not give Block-KD's weights on ImageNet. Here they are those of KD in mdistiller, and gamma equals beta.

Reference: Yu et al., arXiv 2411.01547 (100 epochs, batch 512); the rest is mdistiller's configs/imagenet (Zhao et al.,
CVPR 2022). Not trained to the end.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import taught
from experiments.configs.options import parse_options
from kd_local.errors import unknown

BETA = {"resnet34-resnet18": 0.5, "resnet50-mobilenetv1": 2.0}
"""DKD's beta by pair, as its authors set it."""

ROWS = tuple(f"pair={pair},method={method}" for pair in BETA for method in ("kd", "dkd", "block_kd"))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, pair="resnet34-resnet18", method="block_kd")
    if choice["pair"] not in BETA:
        raise unknown("pair", choice["pair"], BETA)
    teacher, student = choice["pair"].split("-")
    config = taught(student, teacher, "imagenet2012", choice["method"])
    config.epochs = 100
    config.batch_size = 512
    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 1e-4
    config.optimizer.milestones = (30, 60, 90)
    if config.method == "block_kd":
        config.block_kd.update(alpha=0.5, beta=0.5, gamma=0.5, temperature=1.0)
    elif config.method == "kd":
        config.kd.update(ce_weight=0.5, weight=0.5, temperature=1.0)
    elif config.method == "dkd":
        config.dkd.update(beta=BETA[choice["pair"]], temperature=1.0, warmup_epochs=1)
    elif config.method == "fcfd":  # the authors' rate is 0.1 at batch 256
        config.fcfd.update(feature_weight=0.02, mixture_weight=1.0, temperature=1.0)
        config.optimizer.nesterov = True
    return config
