"""The key `teacher.cache` in the training program."""

import json
from pathlib import Path

import pytest

from tests.support.processes import finish_all, start, start_two, succeed


def arguments(workdir: Path, teacher: Path, *more: str) -> list[str]:
    changes = ["method=kd", "epochs=3", "batch_size=32", "data.train_examples=200", f"teacher.weights={teacher}", *more]
    return [f"--workdir={workdir}", *(f"--config.{change}" for change in changes)]


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def run(workdir: Path, teacher: Path, *more: str) -> tuple[str, dict]:
    return succeed("train", *arguments(workdir, teacher, *more)), summary(workdir)


@pytest.mark.exhaustive
def test_a_cache_is_filled_once_and_does_not_change_the_results(teacher_run, tmp_path):
    cache = tmp_path / "cache"
    _, plain = run(tmp_path / "plain", teacher_run)
    out, cached = run(tmp_path / "cached", teacher_run, f"teacher.cache={cache}")
    assert "teacher0_logits: 26.6 KiB for 3 epochs" in out
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(written) == 3
    # Another way to learn from the same logits, and fewer of them.
    run(tmp_path / "dkd", teacher_run, f"teacher.cache={cache}", "method=dkd", "epochs=2", "optimizer.warmup_epochs=1")
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    for name in ("test_accuracy", "test_loss", "agreement", "teacher_accuracy"):
        assert plain[name] == pytest.approx(cached[name], rel=1e-3), name


@pytest.mark.exhaustive
@pytest.mark.parametrize(("method", "files"), [("kd", 3), ("crld", 6)])
def test_one_of_two_processes_fills_the_cache_and_both_read_it(teacher_run, tmp_path, method, files):
    """Also with two views, of which each has a cache."""
    cache, run_options = tmp_path / "cache", ("epochs=1", "optimizer.schedule=constant", f"method={method}")
    asked = ("mesh.data=2", *run_options, f"teacher.cache={cache}")
    flags = arguments(tmp_path / "two", teacher_run, *asked)
    (status, out, err), (other, _, _) = finish_all(start_two("train", *flags, devices_of_each=8))
    assert (status, other) == (0, 0), err
    two = summary(tmp_path / "two")
    assert "teacher0_logits: 9.0 KiB for 1 epochs" in out
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(written) == files
    _, one = run(tmp_path / "one", teacher_run, *run_options, f"teacher.cache={cache}")
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    for name in ("test_accuracy", "test_loss", "agreement"):
        assert two[name] == pytest.approx(one[name], rel=1e-3), name


@pytest.mark.exhaustive
def test_two_runs_fill_a_cache_at_once(teacher_run, tmp_path):
    cache = tmp_path / "cache"
    asked = ("epochs=2", "optimizer.schedule=constant", f"teacher.cache={cache}")
    processes = [start("train", *arguments(tmp_path / name, teacher_run, *asked)) for name in ("one", "other")]
    ends = finish_all(processes)
    assert [status for status, _, _ in ends] == [0, 0], ends
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(written) == 3
    run(tmp_path / "third", teacher_run, *asked)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    losses = {summary(tmp_path / name)["test_loss"] for name in ("one", "other", "third")}
    assert len(losses) == 1
