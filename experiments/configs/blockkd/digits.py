"""Digits, ResNet-20 to ResNet-8: a teacher and a student from nothing, in minutes on a laptop.

Commands: python -m experiments.train --config=experiments/configs/blockkd/teacher.py:network=resnet20,data=digits \
              --workdir=runs/teacher
          python -m experiments.train --config=experiments/configs/blockkd/digits.py \
              --config.teacher.weights=runs/teacher
All rows: python -m experiments.sweep --config=experiments/configs/blockkd/digits.py --seeds=0,1,2 \
              --config.teacher.weights=runs/teacher
Options: method, student
"""

from ml_collections import ConfigDict

from experiments.configs.blockkd.protocol import taught
from experiments.configs.options import parse_options
from kd_local.distill import OBJECTIVES

ROWS = tuple(f"method={method}" for method in ("end_to_end", *OBJECTIVES, "local_distillation"))


def get_config(options: str = "") -> ConfigDict:
    choice = parse_options(options, method="block_kd", student="resnet8")
    return taught(choice["student"], "resnet20", "digits", choice["method"])
