"""What is foretold and what is seen are held together."""

import json
import os
import subprocess
import sys

import optax
import pytest

from kd_local.local import EndToEnd
from kd_local.memory import observed
from kd_local.models import create

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


def test_within_15_percent_of_what_is_foretold():
    # One device and optimised code, as users have.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    seen, foretold = json.loads(done.stdout.splitlines()[-1])
    assert seen == pytest.approx(foretold, rel=0.15)


def test_nothing_is_told_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(observed, "_STATUS", tmp_path / "status")
    method = EndToEnd(create("resnet8", classes=10), optax.sgd(0.1, momentum=0.9))
    assert observed.observed_peak(method, (8, 8, 1), 8) is None
