"""Digits, ResNet-20 to ResNet-8 or another pair: trains a teacher and a student in minutes on a laptop.

Commands: python -m experiments.train --config=experiments/configs/blockkd/teacher.py:network=resnet20,data=digits \
              --workdir=runs/teacher
          python -m experiments.sweep --config=experiments/configs/blockkd/digits.py \
              --config.teacher.weights=runs/teacher
Options: method (contsup: local distillation), student, teacher. Transformers for images of 8x8 are vit_ti2 and, with a
class token, vit_ti_2: student=vit_ti_2,method=ofa or teacher=vit_ti_2,method=block_kd.

With 300 images and 40 epochs (mean of three seeds, docs/results.md) the test error of ResNet-8 is 2.69 % alone, 0.93 %
with kd and 1.11 % with block_kd.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import taught
from experiments.configs.objectives import OBJECTIVES
from experiments.configs.options import parse_options

ROWS = tuple(f"method={method}" for method in ("end_to_end", *OBJECTIVES, "contsup"))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, method="block_kd", student="resnet8", teacher="resnet20")
    return taught(choice["student"], choice["teacher"], "digits", choice["method"])
