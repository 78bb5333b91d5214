"""The training program in its own process: stopped, killed and started again."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.from_config.experiment import build
from kd_local.training import Checkpoints
from tests.support import processes
from tests.support.processes import finish, newest_checkpoint, wait_until

SMALL = {
    "epochs": 8,
    "batch_size": 32,
    "data.train_examples": 200,
    "data.validation_examples": 30,
    "local.modules": 2,
    "local.context": "R1",
    "optimizer.warmup_epochs": 2,
    "checkpoint.seconds": 0.0,
}
STEPS = 8 * 7


def start(workdir: Path, **changes: object) -> subprocess.Popen[str]:
    flags = [f"--config.{key}={value}" for key, value in {**SMALL, **changes}.items()]
    return processes.start("train", f"--workdir={workdir}", *flags)


def final(workdir: Path):
    """The tree of the last checkpoint."""
    experiment = build(ConfigDict(json.loads((workdir / "config.json").read_text())))
    state = experiment.method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore_latest({"state": state, "sums": jnp.zeros(2 * len(state))})


def records(workdir: Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "images_per_second", "data_wait_seconds", "crc32")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("reference")
    status, out, err = finish(start(workdir, **{"checkpoint.seconds": 1000.0}))
    assert status == 0, err
    assert "test_accuracy" in out
    return workdir


def assert_same(workdir: Path, reference: Path) -> None:
    (step, ours), (reference_step, theirs) = final(workdir), final(reference)
    assert step == reference_step == STEPS
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert records(workdir) == records(reference)


def test_files_of_a_run(reference):
    summary = json.loads((reference / "summary.json").read_text())
    assert {
        k: summary[k] for k in ("method", "network", "dataset", "modules", "context", "seed", "epochs", "steps")
    } == {
        "method": "contsup",
        "network": "resnet8",
        "dataset": "digits",
        "modules": 2,
        "context": "R1",
        "seed": 0,
        "epochs": 8,
        "steps": STEPS,
    }
    assert 0.5 < summary["test_accuracy"] <= 1 and 0 <= summary["validation_accuracy"] <= 1
    assert summary["train_seconds"] > 0 and summary["images_per_second"] > 0
    assert summary["parameters_trained"] > summary["parameters_deployed"] > 0
    assert summary["peak_bytes"] > 0 and summary["peak_of_end_to_end"] > 0
    assert (reference / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((reference / "tensorboard").iterdir())
    assert [record["step"] for record in records(reference)] == [7 * epoch for epoch in range(1, 9)]


@pytest.mark.usually("2-0")
@pytest.mark.parametrize(("times", "seed"), [(2, 0), (4, 1)])
def test_a_run_killed_at_random_moments_ends_with_the_same_result(reference, tmp_path, times, seed):
    kill_and_finish(tmp_path, times, seed)
    assert_same(tmp_path, reference)


@pytest.mark.exhaustive
def test_a_killed_run_of_several_steps_per_call_ends_with_the_same_result(tmp_path):
    """An epoch has seven steps: two calls of three, and a single one."""
    calls = {"steps_per_call": 3, "data.on_devices": True}
    whole = tmp_path / "whole"
    status, _, err = finish(start(whole, **calls))
    assert status == 0, err
    kill_and_finish(tmp_path / "killed", 4, 2, **calls)
    assert_same(tmp_path / "killed", whole)


def kill_and_finish(tmp_path, times, seed, **keys):
    moments = random.Random(seed)
    kills = 0
    while kills < times:
        before = newest_checkpoint(tmp_path)
        process = start(tmp_path, **keys)
        step = before + moments.randrange(8)
        wait_until(lambda step=step: newest_checkpoint(tmp_path) > step, [process])
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        kills += 1
    print("killed after checkpoints up to", newest_checkpoint(tmp_path), "of", STEPS)
    assert newest_checkpoint(tmp_path) < STEPS
    status, out, err = finish(start(tmp_path, **keys))
    assert status == 0, err
    assert "resuming from step" in out


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_the_run_and_the_same_command_resumes(reference, tmp_path, number):
    process = start(tmp_path, **{"checkpoint.seconds": 1000.0})
    wait_until(lambda: (tmp_path / "metrics.jsonl").exists() and records(tmp_path), [process])
    process.send_signal(number)
    status, _, err = finish(process)
    assert status == 128 + number
    assert f"interrupted by {number.name} after step " in err
    assert f"saved in {tmp_path}: the same command resumes from there" in err
    assert 7 <= newest_checkpoint(tmp_path) < STEPS
    assert finish(start(tmp_path))[0] == 0
    assert_same(tmp_path, reference)


@pytest.mark.exhaustive
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(reference, tmp_path):
    assert finish(start(tmp_path, steps=20))[0] == 0
    folder = tmp_path / "checkpoints" / "20"
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.write_bytes(damaged)
    status, out, err = finish(start(tmp_path))
    assert status == 0
    assert "checkpoint 20 is damaged" in err and "using checkpoint 19" in err
    assert f"resuming from step 19 of {STEPS}" in out
    assert_same(tmp_path, reference)


def test_a_misspelt_key_is_refused_by_the_program_itself(tmp_path):
    status, out, err = finish(start(tmp_path, **{"optimzer.learning_rate": 1}))
    assert (status, out) == (2, "")
    assert err.startswith("error: unknown config key 'optimzer.learning_rate': the nearest are optimizer.learning_rate")


def test_a_finished_run_shows_its_result_again(reference):
    before = (reference / "summary.json").read_text()
    status, out, err = finish(start(reference))
    assert status == 0, err
    assert "test_accuracy" in out
    assert (reference / "summary.json").read_text() == before


@pytest.mark.exhaustive
def test_a_loss_that_is_not_finite_names_module_step_and_checkpoint(tmp_path):
    status, _, err = finish(start(tmp_path, **{"optimizer.learning_rate": 20.0, "optimizer.warmup_epochs": 0}))
    assert status == 1
    assert "error: the state is not finite after step " in err and " of module0" in err
    assert "is the last good one" in err or "no checkpoint was saved before" in err
    assert not (tmp_path / "summary.json").exists()
