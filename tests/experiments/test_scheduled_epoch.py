"""The epoch that objectives see if the schedule is compressed."""

import numpy as np

from experiments.configs import default
from experiments.from_config.scheduled_epoch import scheduled_epoch
from kd_local.training import TrainingPlan


def test_the_epochs_of_the_schedule_are_compressed_to_its_steps():
    config = default.get_config()
    config.epochs, plan = 8, TrainingPlan(0, 20, 10, 64)
    assert scheduled_epoch(config, plan) == {}
    config.optimizer.schedule_steps = 20
    epoch = scheduled_epoch(config, plan)["epoch"]
    found = [epoch(step, np.arange(3)) for step in range(20)]
    assert [float(each) for each in found] == [1 + step * 80 // 20 // 10 for step in range(20)]
    assert found[0].dtype == np.float32 and found[-1] == 8
