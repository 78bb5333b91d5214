"""The measured peak on a platform that does not report it."""

import optax

from kd_local.local import EndToEnd
from kd_local.memory import observed
from kd_local.models import create


def test_the_peak_is_none_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(observed, "_STATUS", tmp_path / "status")
    method = EndToEnd(create("resnet8", classes=10), optax.sgd(0.1, momentum=0.9))
    assert observed.observed_peak(method, (8, 8, 1), 8) is None
