"""A request to stop is not taken for one to save."""

import signal
from unittest import mock

import pytest

from kd_local.training.agreement import Agreement
from kd_local.training.checkpoints import Checkpoints
from kd_local.training.finite import StateCheck
from kd_local.training.interruption import Interruption
from kd_local.training.metrics import EpochMetrics
from kd_local.training.saving import Saving


@pytest.mark.parametrize("number", [None, signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("saves", [False, True])
def test_each_signal_stops_the_run(number: int | None, saves: bool) -> None:
    interruption, checkpoints = Interruption(), mock.Mock(spec=Checkpoints)
    check, metrics = mock.Mock(spec=StateCheck), mock.Mock(spec=EpochMetrics)
    saving = Saving(checkpoints, 0.0 if saves else 1e6, interruption, Agreement(1), check, first_step=0)
    interruption.received = number
    assert saving.after(3, {}, metrics, last=False) == number
    assert checkpoints.save.called == (saves or number is not None)
