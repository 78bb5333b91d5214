"""A teacher is trained by one command, used by the next, and evaluated and exported by others."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from kd_local.interop import network_to_torch
from kd_local.models import create
from tests.support.processes import refused, succeed

SMALL = (
    "--config.epochs=2",
    "--config.data.train_examples=96",
    "--config.batch_size=32",
    "--config.network.name=resnet8",
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup_epochs=0",
    "--config.optimizer.learning_rate=0.02",
)
LOCALLY = ("--config.local.auxiliary=teacher", "--config.local.context=R0", "--config.local.modules=3")


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    succeed("train", *SMALL, "--config.method=end_to_end", f"--workdir={folder}")
    return folder


@pytest.fixture(scope="module")
def student(teacher) -> Path:
    folder = teacher.parent / "student"
    succeed("train", *SMALL, "--config.method=block_kd", f"--config.teacher.weights={teacher}", f"--workdir={folder}")
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
    succeed("train", *SMALL, *LOCALLY, f"--config.teacher.weights={student}", f"--workdir={folder}")
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
        printed = succeed("evaluate", "--config.network.name=resnet8", f"--weights={weights}",
                      f"--workdir={tmp_path / folder}")  # fmt: skip
        assert "test_accuracy" in printed
        assert summary(tmp_path / folder)["test_accuracy"] == summary(teacher)["test_accuracy"]
    # The same bits, since the run's batches are used.
    assert summary(tmp_path / "ours")["test_loss"] == summary(teacher)["test_loss"]
    assert summary(tmp_path / "ours")["batch_size"] == 32 and summary(tmp_path / "ours")["dtype"] == "float32"


def test_an_exported_student_is_evaluated_alike_and_teaches(student, tmp_path):
    out = tmp_path / "exported"
    printed = succeed("export", f"--workdir={student}", f"--output={out}", "--forms=orbax,safetensors,torch")
    names = ["orbax", "network.safetensors", "network.pth", "README.md"]
    assert printed.split() == [str(out / name) for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    # The card's own commands, whose weights are replaced by another form.
    lines = [shlex.split(line) for line in (out / "README.md").read_text().splitlines() if line.startswith("    ")]
    of_teacher, _, evaluation = lines[:3]
    assert evaluation[:4] == ["python", "-m", "experiments.evaluate", f"--weights={out}/orbax"]
    for name in ("orbax", "network.safetensors"):
        succeed("evaluate", *evaluation[4:], f"--weights={out / name}", f"--workdir={tmp_path / name}")
        assert summary(tmp_path / name)["test_accuracy"] == summary(student)["test_accuracy"]
    succeed("train", *SMALL, "--config.method=kd", *of_teacher, "--config.epochs=1", f"--workdir={tmp_path / 'next'}")
    assert summary(tmp_path / "next")["teacher_accuracy"] == pytest.approx(summary(student)["test_accuracy"], abs=1e-9)
    refused("export", [([f"--workdir={student}", f"--output={out}"], "is not empty: give a new folder, or empty it")])


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["simkd", "block_kd", "teacher", "crd", "contsup", "bfloat16"])
def test_a_run_of_any_method_is_evaluated_and_teaches_with_the_accuracy_that_it_had(teacher, method, tmp_path):
    options = {
        "contsup": ["--config.method=contsup"],
        "teacher": [*LOCALLY, f"--config.teacher.weights={teacher}"],
        "bfloat16": ["--config.network.dtype=bfloat16", "--config.local.answer=ensemble"],
    }.get(method, [f"--config.method={method}", f"--config.teacher.weights={teacher}"])
    succeed("train", *SMALL, *options, "--config.data.mean=0.9", f"--workdir={tmp_path / 'run'}")
    found = summary(tmp_path / "run")
    succeed("evaluate", f"--weights={tmp_path / 'run'}", f"--workdir={tmp_path / 'evaluated'}")
    evaluated = summary(tmp_path / "evaluated")
    assert evaluated["test_accuracy"] == found["test_accuracy"]
    assert evaluated["test_loss"] == found["test_loss"]
    assert {name: exit["test_accuracy"] for name, exit in found["exits"].items()} == {
        name: exit["test_accuracy"] for name, exit in evaluated["exits"].items()
    }
    succeed("train", *SMALL, "--config.method=kd", f"--config.teacher.weights={tmp_path / 'run'}",
        f"--config.teacher.dtype={evaluated['dtype']}", "--config.epochs=1",
        f"--workdir={tmp_path / 'next'}")  # fmt: skip
    assert summary(tmp_path / "next")["teacher_accuracy"] == pytest.approx(found["test_accuracy"], abs=1e-9)


@pytest.mark.exhaustive
def test_two_teachers_at_once(teacher, student):
    folder = student.parent / "of_two"
    succeed("train", *SMALL, "--config.method=kd", f"--config.teacher.weights={teacher},{student}",
        f"--workdir={folder}", "--config.epochs=1")  # fmt: skip
    assert 0 < summary(folder)["teacher_accuracy"] <= 1


def test_weights_that_do_not_fit_are_named(teacher):
    commands = [
        (["--config.network.name=resnet14", f"--weights={teacher}/network.npz"], "stage1/1.*missing"),
        (["--config.network.name=resnet14", f"--weights={teacher}"], "but in the run in .* it is 'resnet8': leave it"),
        ([], "--weights is not set"),
        ([f"--weights={teacher}", f"--workdir={teacher}"], "is the folder of a training run: use another --workdir"),
    ]
    refused("evaluate", commands)
