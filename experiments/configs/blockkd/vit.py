"""A vision transformer on ImageNet, taught by a ResNet-50 by Block-KD. Not run to its end here: no figures of ours.

Command: python -m experiments.train --config=experiments/configs/blockkd/vit.py:resnet50_vit_s16 \
             --config.data.data_dir=DIR --config.teacher.weights=resnet50.pth
Options: resnet50_vit_s16 (if none) or resnet50_vit_ti16, the teacher before the student.
Weights: torchvision's file of the teacher, or the folder of a run of ours. Over N devices: `--config.mesh.data=N`.

Optimizer, schedule and batch are those of contsup/vit.py, Block-KD's numbers those of imagenet.py. A stone enters the
teacher behind each of its four stages, from a quarter of the student's depth each; features are resized to fit.

Reference: Yu et al., arXiv 2411.01547, for the method: none of the pairs known of it is of this kind. The student's
training is that of Beyer, Zhai and Kolesnikov (arXiv 2205.01580), see contsup/vit.py.
"""

from ml_collections import ConfigDict

from experiments.configs.contsup import vit
from kd_local.errors import unknown

STUDENTS = {"resnet50_vit_s16": "vit_s16", "resnet50_vit_ti16": "vit_ti16"}


def get_config(options: str = "") -> ConfigDict:
    pair = options or "resnet50_vit_s16"
    if pair not in STUDENTS:
        raise unknown("option", pair, STUDENTS)
    config = vit.get_config(f"{STUDENTS[pair]}_k4")  # cut only by methods that cut
    config.method = "block_kd"
    config.teacher.network = "resnet50"
    config.block_kd.update(alpha=0.5, beta=0.5, gamma=0.5, temperature=1.0)
    return config
