"""The key `teacher.cache`, from the command line to the folder."""

import signal
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from rich.console import Console

from experiments.configs.default import get_config
from experiments.folders import workdirs
from experiments.from_config.experiment import build
from experiments.train.teacher_caches import FillingStopped, cached_logits, caches
from kd_local.training.interruption import Interruption


def config(teacher: Path, cache: Path | None, **changes) -> ConfigDict:
    made = get_config()
    made.update_from_flattened_dict(
        {
            "method": "kd",
            "epochs": 2,
            "batch_size": 32,
            "data.train_examples": 80,
            "teacher.weights": str(teacher),
            "teacher.cache": None if cache is None else str(cache),
            **changes,
        }
    )
    return made


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("block_kd", "BlockKD reads the teacher's features, and a cache has its logits only: train without a cache"),
        ("at", "AT reads the teacher's features"),
        ("contsup", "teacher.cache is set, but method contsup cannot use cached logits of a teacher: leave it out"),
        ("end_to_end", "teacher.cache is set, but method end_to_end cannot use"),
    ],
)
def test_a_cache_is_refused_for_a_method_that_cannot_use_it(teacher_run, tmp_path, method, message):
    with pytest.raises(ValueError, match=message):
        build(config(teacher_run, tmp_path / "cache", method=method))
    assert not (tmp_path / "cache").exists()


def test_an_unusable_folder_is_refused(teacher_run):
    experiment = build(config(teacher_run, Path("/proc/nowhere")))
    with pytest.raises(ValueError, match=r"teacher.cache '/proc/nowhere' cannot be used: .*; use another folder"):
        caches(experiment, config(teacher_run, Path("/proc/nowhere")), experiment.read())


@pytest.mark.long
def test_a_signal_stops_filling_and_the_same_command_resumes(teacher_run, tmp_path, capsys):
    asked = config(teacher_run, tmp_path)
    experiment = build(asked)
    found = caches(experiment, asked, experiment.read())
    console, interruption = Console(width=200), Interruption()
    interruption.received = signal.SIGTERM
    message = "interrupted by SIGTERM with 1 of 6 rows of teacher0_logits cached: the same command resumes from there"
    with pytest.raises(FillingStopped, match=message) as stopped:
        cached_logits(found, console, interruption)
    assert stopped.value.number == signal.SIGTERM
    out = capsys.readouterr().out
    # 6 steps of 32 x 10 numbers and a checksum, and two headers: 6 * 1284 + 256 bytes.
    assert f"teacher0_logits: 7.8 KiB for 2 epochs, {tmp_path}/logits-" in out
    interruption.received = None
    assert len(found["teacher0_logits"].missing()) == 5
    cached_logits(found, console, interruption)
    assert len(found["teacher0_logits"].missing()) == 0


def test_without_augmentation_a_row_is_an_image(teacher_run, tmp_path, capsys):
    asked = config(teacher_run, tmp_path, **{"data.augment": False})
    experiment = build(asked)
    cached_logits(caches(experiment, asked, experiment.read()), Console(width=200), Interruption())
    assert "teacher0_logits: 3.7 KiB for 80 images and any number of epochs" in capsys.readouterr().out


@pytest.mark.long
def test_each_view_has_a_cache(teacher_run, tmp_path, capsys):
    asked = config(teacher_run, tmp_path, method="crld", **{"data.augment": False})
    experiment = build(asked)
    found = cached_logits(caches(experiment, asked, experiment.read()), Console(width=200), Interruption())
    assert set(found) == {"teacher0_logits", "teacher0_strong_logits"}
    out = capsys.readouterr().out
    assert "teacher0_logits: 3.7 KiB for 80 images and any number of epochs" in out
    assert "teacher0_strong_logits: 7.8 KiB for 2 epochs" in out


def test_without_teacher_cache_there_are_no_caches(teacher_run):
    experiment = build(config(teacher_run, None))
    assert not experiment.method.cached
    assert caches(experiment, config(teacher_run, None), experiment.read()) == {}


def test_the_folder_of_a_cache_may_change_but_not_its_presence(teacher_run, tmp_path):
    one, other, none = (config(teacher_run, cache) for cache in (tmp_path / "one", tmp_path / "other", None))
    assert workdirs.default_workdir(one) == workdirs.default_workdir(other) != workdirs.default_workdir(none)
    workdirs.claim(tmp_path, one)
    workdirs.claim(tmp_path, other)
    with pytest.raises(ValueError, match='teacher.cache: "a folder" there, null now'):
        workdirs.claim(tmp_path, none)
