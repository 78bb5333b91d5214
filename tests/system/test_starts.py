"""The record of a run's starts."""

import subprocess
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from experiments.folders.starts import StartRecord, checkout, read_starts
from kd_local.training.records import TrainingPlan

PLAN = TrainingPlan(0, 10, 5, 8)


def test_a_start_that_trains_is_recorded(tmp_path):
    record = StartRecord(tmp_path, "experiments.train")
    for first in (0, 5, 10):  # the last has nothing to do
        record.on_start(replace(PLAN, first_step=first))
    starts = read_starts(tmp_path)
    assert [start["step"] for start in starts] == [0, 5]
    assert starts[0]["versions"]["jax"] == jax.__version__
    assert starts[0]["command"].startswith("python -m experiments.train")
    assert read_starts(tmp_path / "none") == []


def test_the_commit_of_a_checkout(tmp_path):
    assert checkout(tmp_path) == (None, None)

    def git(*arguments: str) -> None:
        try:
            subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("git is not installed")

    git("init")
    file = Path(tmp_path / "file")
    file.write_text("1")
    git("add", "file")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    commit, changed = checkout(tmp_path)
    assert commit is not None and len(commit) == 40 and changed is False
    file.write_text("2")
    assert checkout(tmp_path) == (commit, True)
