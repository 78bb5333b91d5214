"""The measured peak of a step against the predicted one."""

import json
import os
import subprocess
import sys

import pytest

# Large enough that the library's scratch memory for single convolutions, which no executable tells, matters little.
PROCESS = """
import json, optax
from kd_local.local import EndToEnd
from kd_local.memory import footprint, observed_peak, target
from kd_local.models import create
method = EndToEnd(create("resnet20", classes=10), optax.sgd(0.1, momentum=0.9))
seen = observed_peak(method, (32, 32, 3), 256)
print(json.dumps([seen, footprint(method, (32, 32, 3), 256, target()).peak_bytes]))
"""


def test_the_measured_peak_is_within_15_percent_of_the_predicted_one():
    # One device and optimised code, as users have.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    seen, predicted = json.loads(done.stdout.splitlines()[-1])
    assert seen == pytest.approx(predicted, rel=0.15)
