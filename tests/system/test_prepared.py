"""A program that reads prepared data."""

import subprocess
import sys
from typing import Any

from tests.support.processes import ROOT

SHAPE = (32, 32, 3)


def test_prepared_data_are_read_without_output_and_without_tensorflow(prepare: Any, examples: Any) -> None:
    data_dir = prepare("cifar100", train=examples(3, SHAPE, 100))
    code = (
        "import sys; from absl import logging; level = logging.get_absl_logger().level; "
        "from kd_local.data.prepared import PreparedSplit, find; "
        f"PreparedSplit(find('cifar100', {str(data_dir)!r}), 'train').examples(); "
        "assert 'tensorflow' not in sys.modules; assert logging.get_absl_logger().level == level"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
