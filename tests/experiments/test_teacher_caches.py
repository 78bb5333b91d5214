"""The key `teacher.cache`, from the command line to the folder."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from experiments.configs.default import get_config
from experiments.folders import workdirs
from experiments.from_config.experiment import build
from experiments.from_config.teachers import save_network
from experiments.train.teacher_caches import FillingStopped, cached_logits, caches
from kd_local.models import create
from kd_local.training.interruption import Interruption

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """What a run that has trained a ResNet-8 leaves."""
    folder = tmp_path_factory.mktemp("teacher")
    network = create("resnet8", classes=10)
    save_network(network.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1))), folder)
    (folder / "config.json").write_text(json.dumps({"network": {"name": "resnet8", "shortcut": "projection"}}))
    return folder


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
        ("local_distillation", "teacher.cache is set, but local_distillation reads no teacher's logits that could be"),
        ("contsup", "teacher.cache is set, but contsup reads no teacher's logits that could be cached: leave it out"),
        ("end_to_end", "teacher.cache is set, but end_to_end reads no teacher's logits"),
    ],
)
def test_a_method_that_has_no_use_for_it_is_refused_before_data_are_read(teacher, tmp_path, method, message):
    with pytest.raises(ValueError, match=message):
        build(config(teacher, tmp_path / "cache", method=method))
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_is_refused(teacher):
    experiment = build(config(teacher, Path("/proc/nowhere")))
    with pytest.raises(ValueError, match=r"teacher.cache '/proc/nowhere' cannot be used: .*; use another folder"):
        caches(experiment, config(teacher, Path("/proc/nowhere")), experiment.read())


def test_asked_to_stop_while_filling_it_says_so_and_goes_on(teacher, tmp_path, capsys):
    asked = config(teacher, tmp_path)
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


def test_without_crops_a_row_is_an_image(teacher, tmp_path, capsys):
    asked = config(teacher, tmp_path, **{"data.augment": False})
    experiment = build(asked)
    cached_logits(caches(experiment, asked, experiment.read()), Console(width=200), Interruption())
    assert "teacher0_logits: 3.7 KiB for 80 images, as often as they are shown" in capsys.readouterr().out


def test_no_cache_is_none(teacher):
    experiment = build(config(teacher, None))
    assert not experiment.method.cached
    assert caches(experiment, config(teacher, None), experiment.read()) == {}


def test_where_a_cache_lies_may_change_but_not_whether_there_is_one(teacher, tmp_path):
    one, other, none = (config(teacher, cache) for cache in (tmp_path / "one", tmp_path / "other", None))
    assert workdirs.default_workdir(one) == workdirs.default_workdir(other) != workdirs.default_workdir(none)
    workdirs.claim(tmp_path, one)
    workdirs.claim(tmp_path, other)
    with pytest.raises(ValueError, match='teacher.cache: "a folder" there, null now'):
        workdirs.claim(tmp_path, none)


def start(workdir: Path, teacher: Path, *more: str, flags: tuple[str, ...] = ()) -> subprocess.Popen:
    changes = ["method=kd", "epochs=3", "batch_size=32", "data.train_examples=200", f"teacher.weights={teacher}", *more]
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        [*command, *(f"--config.{change}" for change in changes)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen, workdir: Path) -> tuple[str, dict]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, json.loads((workdir / "summary.json").read_text())


def run(workdir: Path, teacher: Path, *more: str) -> tuple[str, dict]:
    return finish(start(workdir, teacher, *more), workdir)


@pytest.mark.exhaustive
def test_the_program_gives_the_same_with_a_cache_and_fills_it_once(teacher, tmp_path):
    cache = tmp_path / "cache"
    _, plain = run(tmp_path / "plain", teacher)
    out, cached = run(tmp_path / "cached", teacher, f"teacher.cache={cache}")
    assert "teacher0_logits: 26.6 KiB for 3 epochs" in out
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(written) == 3
    # Another way to learn from the same logits, and fewer of them.
    run(tmp_path / "dkd", teacher, f"teacher.cache={cache}", "method=dkd", "epochs=2", "optimizer.warmup_epochs=1")
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    for name in ("test_accuracy", "test_loss", "agreement", "teacher_accuracy"):
        assert plain[name] == pytest.approx(cached[name], rel=1e-3), name


@pytest.mark.exhaustive
def test_of_two_processes_one_fills_it_and_both_read(teacher, tmp_path):
    cache = tmp_path / "cache"
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    shared = ("--distributed", f"--coordinator={address}", "--processes=2")
    asked = ("mesh.data=2", "epochs=1", "optimizer.warmup_epochs=0", f"teacher.cache={cache}")
    both = [start(tmp_path / "two", teacher, *asked, flags=(*shared, f"--index={index}")) for index in range(2)]
    (out, two), _ = (finish(process, tmp_path / "two") for process in both)
    assert "teacher0_logits: 9.0 KiB for 1 epochs" in out
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(written) == 3
    _, one = run(tmp_path / "one", teacher, "epochs=1", "optimizer.warmup_epochs=0", f"teacher.cache={cache}")
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    for name in ("test_accuracy", "test_loss", "agreement"):
        assert two[name] == pytest.approx(one[name], rel=1e-3), name
