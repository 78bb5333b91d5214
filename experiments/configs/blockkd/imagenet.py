"""The two teacher-student pairs of the field on ImageNet, by Block-KD. Not run to its end here: no figures of ours.

Command: python -m experiments.train --config=experiments/configs/blockkd/imagenet.py:resnet34_resnet18 \
             --config.data.data_dir=DIR --config.teacher.weights=resnet34.pth
Options: resnet34_resnet18 (if none) or resnet50_mobilenetv1, the teacher before the student.
Weights: torchvision's file of the teacher, or the folder of a run of ours. With `--config.method=kd` or `dkd` it is
mdistiller's setting of these, with `end_to_end` the student alone. Over N devices: `--config.mesh.data=N`.

100 epochs of SGD, batch 512, rate 0.2 and a tenth of it from 30, 60 and 90 each; no Nesterov; weight decay 1e-4. As on
CIFAR-100, Block-KD's numbers, which its paper leaves open, are those of KD in this protocol, and gamma is beta.

Reference: Yu et al., arXiv 2411.01547, the ImageNet experiments, with its 100 epochs and batch 512 (its tables could
not be obtained, and none is quoted); the rest is mdistiller's configs/imagenet (Zhao et al., CVPR 2022).
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import taught
from kd_local.errors import unknown

PAIRS = {  # option: teacher, student, DKD's beta as its authors set it
    "resnet34_resnet18": ("resnet34", "resnet18", 0.5),
    "resnet50_mobilenetv1": ("resnet50", "mobilenetv1", 2.0),
}


def get_config(options: str = "") -> ConfigDict:
    pair = options or "resnet34_resnet18"
    if pair not in PAIRS:
        raise unknown("option", pair, PAIRS)
    teacher, student, beta = PAIRS[pair]
    config = taught(student, teacher, "imagenet2012", "block_kd")
    config.epochs = 100
    config.batch_size = 512
    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 1e-4
    config.optimizer.milestones = (30, 60, 90)
    config.block_kd.update(alpha=0.5, beta=0.5, gamma=0.5, temperature=1.0)
    config.kd.update(ce_weight=0.5, weight=0.5, temperature=1.0)
    config.dkd.update(beta=beta, temperature=1.0, warmup_epochs=1)
    return config
