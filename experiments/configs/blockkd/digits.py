"""Digits, ResNet-20 to ResNet-8 or another pair: trains a teacher and a student in minutes on a laptop.

Commands: python -m experiments.train --config=experiments/configs/blockkd/teacher.py:network=resnet20,data=digits \
              --workdir=runs/teacher
          python -m experiments.sweep --config=experiments/configs/blockkd/digits.py \
              --config.teacher.weights=runs/teacher --seeds=0,1,2,3,4
Options: method (contsup: local distillation), student, teacher, dot (DOT's delta; 0: one gradient). Transformers for
images of 8x8 are vit_ti2 and, with a class token, vit_ti_2: student=vit_ti_2,method=ofa or
teacher=vit_ti_2,method=block_kd.

With 300 images and 40 epochs (mean of five seeds, docs/results.md) the test error of ResNet-8 is 2.28 % alone, 1.33 %
with kd and 1.39 % with block_kd.
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import taught
from experiments.configs.combination import DISTILLATION
from experiments.configs.options import parse_options

ROWS = (*(f"method={method}" for method in ("end_to_end", *DISTILLATION, "contsup")), "method=kd,dot=0.075")


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, method="block_kd", student="resnet8", teacher="resnet20", dot=0.0)
    config = taught(choice["student"], choice["teacher"], "digits", choice["method"])
    config.optimizer.dot = choice["dot"] or None
    return config
