"""The times of the steps of a sweep's rows."""

import pytest

from experiments.configs import default
from experiments.sweep.step_time import add_times, known_times
from experiments.sweep.step_times import form_of, time_steps, whole


def config_of(**keys):
    config = default.get_config()
    config.batch_size, config.method = 8, "end_to_end"
    with config.unlocked():
        config.update_from_flattened_dict(keys)
    return config


def test_end_to_end_has_the_images_of_an_update():
    config = config_of(**{"method": "contsup", "optimizer.accumulate": 4, "local.modules": 2})
    reference = whole(config)
    assert (reference.method, reference.batch_size, reference.optimizer.accumulate) == ("end_to_end", 32, 1)
    assert config.batch_size == 8 and form_of(config) == "separate"


@pytest.mark.exhaustive
def test_rows_are_timed_in_turn_and_kept_while_their_options_are_the_same(tmp_path):
    configs = {
        "whole": config_of(batch_size=64),
        "accumulated": config_of(**{"optimizer.accumulate": 8}),
        "cut": config_of(**{"method": "contsup", "local.modules": 2, "batch_size": 64}),
    }
    times = time_steps(configs, rounds=2)
    assert times["whole"].of_end_to_end == 1 and times["whole"].peak_of_end_to_end == 1
    assert times["accumulated"].peak_of_end_to_end < 1
    assert all(0 < each.lowest <= each.seconds <= each.highest and each.rounds == 2 for each in times.values())
    add_times(tmp_path, configs, {"whole": times["whole"]})
    add_times(tmp_path, configs, {"cut": times["cut"]})
    changed = {**configs, "cut": config_of(**{"method": "contsup", "local.modules": 2})}
    seeds = {**configs, "whole": config_of(batch_size=64, seed=3)}
    assert known_times(tmp_path, seeds) == {"whole": times["whole"], "cut": times["cut"]}
    assert known_times(tmp_path, changed) == {"whole": times["whole"]}
    (tmp_path / "step_times.json").write_text("{")
    assert known_times(tmp_path, configs) == {}


@pytest.mark.parametrize(("steps", "form", "expected"), [(None, None, "separate"), (5, "joined", "scanned")])
def test_the_form_is_that_of_training(steps, form, expected):
    config = config_of()
    with config.unlocked():
        config.steps_per_call, config.step = steps, form
    assert form_of(config) == expected
