"""A teacher trained by one command, learnt from by the next, evaluated by a third."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kd_local.interop import network_to_torch
from kd_local.models import create
from tests.support.processes import run_all

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config.epochs=2",
    "--config.data.train_examples=96",
    "--config.batch_size=32",
    "--config.network.name=resnet8",
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup_epochs=0",
    "--config.optimizer.learning_rate=0.02",
)


def run(program: str, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{program}", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout if status == 0 else done.stderr


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    run("train", *SMALL, "--config.method=end_to_end", f"--workdir={folder}")
    return folder


@pytest.fixture(scope="module")
def student(teacher) -> Path:
    folder = teacher.parent / "student"
    run("train", *SMALL, "--config.method=block_kd", f"--config.teacher.weights={teacher}", f"--workdir={folder}")
    return folder


def test_a_student_is_compared_with_its_teacher(teacher, student):
    found = summary(student)
    assert found["teacher_accuracy"] == pytest.approx(summary(teacher)["test_accuracy"], abs=1e-9)
    assert 0 < found["agreement"] <= 1
    assert list(found["exits"]) == ["stone1", "stone2", "stone3"]
    assert found["parameters_deployed"] == summary(teacher)["parameters_deployed"] == 77754
    # Connectors of 16, 32 and 64 channels: a 1x1 convolution and a normalisation each.
    assert found["parameters_trained"] == 77754 + sum(c * c + 2 * c for c in (16, 32, 64))


@pytest.mark.exhaustive
def test_a_student_teaches_the_next(student):
    folder = student.parent / "next"
    run("train", *SMALL, "--config.method=local_distillation", f"--config.teacher.weights={student}",
        f"--workdir={folder}")  # fmt: skip
    assert summary(folder)["teacher_accuracy"] == pytest.approx(summary(student)["test_accuracy"], abs=1e-9)


def test_a_run_and_a_file_are_evaluated_alike(teacher, tmp_path):
    network = create("resnet8", classes=10)
    with np.load(teacher / "network.npz") as saved:
        variables: dict = {"params": {}, "batch_stats": {}}
        for name in saved.files:
            *path, last = name.split(":")
            place = variables
            for part in path:
                place = place.setdefault(part, {})
            place[last] = saved[name]
    np.savez(tmp_path / "weights.npz", **network_to_torch(network, variables))
    for weights, folder in ((teacher, "ours"), (tmp_path / "weights.npz", "theirs")):
        printed = run("evaluate", "--config.network.name=resnet8", f"--weights={weights}",
                      f"--workdir={tmp_path / folder}")  # fmt: skip
        assert "test_accuracy" in printed
        assert summary(tmp_path / folder)["test_accuracy"] == summary(teacher)["test_accuracy"]


@pytest.mark.exhaustive
def test_two_teachers_at_once(teacher, student):
    folder = student.parent / "of_two"
    run("train", *SMALL, "--config.method=kd", f"--config.teacher.weights={teacher},{student}",
        f"--workdir={folder}", "--config.epochs=1")  # fmt: skip
    assert 0 < summary(folder)["teacher_accuracy"] <= 1


BAD_INPUT: list[tuple[list[str], str]] = [
    ([], "teacher.weights is not set: method 'kd' needs a trained teacher; give a file of weights or the folder"),
    (
        ["--config.teacher.weights=nowhere.npz"],
        "nowhere.npz is not the folder of a run, which would tell its network",
    ),
    (
        ["--config.teacher.weights=nowhere.npz", "--config.teacher.network=resnet20"],
        "nowhere.npz: there is no such file",
    ),
    (["--config.teacher.weights={teacher}", "--config.teacher.network=resnet20"], "is a run of resnet8, but"),
    (
        ["--config.teacher.weights={teacher}", "--config.teacher.network=resnet8,resnet8"],
        "teacher.network names 2 networks, teacher.weights 1 places: give one for each",
    ),
    (
        ["--config.teacher.weights={teacher}/network.npz", "--config.teacher.network=resnet14"],
        "stage1/1/conv1/norm/mean is missing, expected (16,)",
    ),
    (["--config.teacher.weights={empty}"], "is not the folder of a run, which would tell its network"),
    (["--config.teacher.weights={empty}", "--config.teacher.network=resnet8"], "is not the folder of a run"),
    (
        ["--config.method=block_kd", "--config.block_kd.stones=7", "--config.teacher.weights={teacher}"],
        "stones is (7,): use all, or numbers from 1 to 3",
    ),
    (
        ["--config.method=fitnet", "--config.fitnet.stage=9", "--config.teacher.weights={teacher}"],
        "stage 9: the student's stages with one of the teacher beside them are 0, 1, 2, 3",
    ),
    (["--config.teacher.weights={teacher}", "--config.teacher.dtype=half"], "unknown dtype 'half'"),
    (["--config.kd.temperature=0"], "temperature is 0"),
    (["--config.block_kd.distance=l2"], "unknown logit distance 'l2': use kd, dkd, mlkd or dist"),
    (["--config.method=blockkd"], r"unknown method 'blockkd': use .*block_kd"),
    (["--config.data.mean=0.5,0.5"], "data.mean is '0.5,0.5': use a number in [0, 1] for each of the 1 channels"),
]


def test_what_is_refused(teacher, tmp_path):
    workdir = tmp_path / "run"
    commands = [
        [*SMALL, "--config.method=kd", *(argument.format(teacher=teacher, empty=tmp_path) for argument in arguments),
         f"--workdir={workdir}"]
        for arguments, _ in BAD_INPUT
    ]  # fmt: skip
    for (arguments, message), (status, _, said) in zip(BAD_INPUT, run_all("train", commands), strict=True):
        assert status == 2, (arguments, said)
        assert said.startswith("error: ") and len(said.strip().splitlines()) == 1, (arguments, said)
        assert all(part in said for part in message.split(".*")), (arguments, said)
    assert not workdir.exists()


def test_weights_that_do_not_fit_are_named(teacher, tmp_path):
    said = run("evaluate", "--config.network.name=resnet14", f"--weights={teacher}", status=2)
    assert "stage1/1" in said and "missing" in said
    assert "--weights is not set" in run("evaluate", status=2)
    said = run("evaluate", f"--weights={teacher}", f"--workdir={teacher}", status=2)
    assert "holds a training run: use another --workdir" in said
