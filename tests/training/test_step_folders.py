"""Folders of checkpoints: damage, files that cannot be read, other steps and other runs."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_local.training import manifest
from kd_local.training.checkpoints import CheckpointError
from kd_local.training.manifest import MANIFEST
from kd_local.training.step_folders import ORIGIN, StepFolders
from tests.support.checkpoints import files_of

RUN = {"seed": 0, "data": {"name": "digits", "digest": "ab"}, "epochs": [1, 2]}


def fill(directory: Path, *steps: int, run: dict[str, Any] | None = None) -> Path:
    for step in steps:
        folder = directory / str(step)
        (folder / "default").mkdir(parents=True)
        (folder / "default" / "array").write_text(f"array of {step}")
        StepFolders(directory, run, print).seal(step, [], keep=9)
    return directory


def choose(directory: Path, run: dict[str, Any] | None = None) -> tuple[int | None, list[str]]:
    reports: list[str] = []
    return StepFolders(directory, run, reports.append).choose(), reports


def refusal(directory: Path, run: dict[str, Any] | None = None) -> str:
    """The text of the error, after which all files are where they were."""
    before = files_of(directory)
    with pytest.raises(CheckpointError) as raised:
        choose(directory, run)
    assert files_of(directory) == before
    return str(raised.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ETIMEDOUT])
@pytest.mark.parametrize("name", ["array", MANIFEST])
def test_a_file_that_cannot_be_read_ends_with_its_name_and_nothing_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    fill(tmp_path, 4, 8)
    usual = Path.open

    def fail(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == name and path.is_relative_to(tmp_path / "8"):
            raise OSError(number, os.strerror(number))
        return usual(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    text = refusal(tmp_path)
    assert f"/8/{'default/' if name == 'array' else ''}{name} cannot be read ({os.strerror(number)})" in text
    assert "no checkpoint was moved or deleted" in text and ("ulimit -n" in text) == (number == errno.EMFILE)
    monkeypatch.undo()
    assert choose(tmp_path) == (8, [])


def test_an_error_while_a_file_is_read_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 4)

    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")  # as of `read`, without a name

    monkeypatch.setattr(manifest.hashlib, "file_digest", fail)
    assert f"{tmp_path}/4/default/array cannot be read (Input/output error)" in refusal(tmp_path)


def test_a_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    fill(tmp_path, 4)
    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path} cannot be read \(Stale file handle\)"):
        choose(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "null", "5", '"a"', "", "{", "[" * 100_000, '{"default/array": 5}', '{"default/array": null}',
     '{"a\\u0000": "b"}', '{"/etc/hostname": "b"}', '{"../4/default/array": "b"}', '{"default/../x": "b"}',
     '{".": "b"}', '{"%s": "b"}' % ("a" * 300), b"\xff\xfe{}"],
)  # fmt: skip
def test_what_is_no_manifest_is_damage(tmp_path: Path, content: str | bytes) -> None:
    fill(tmp_path, 4, 8)
    (tmp_path / "8" / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    step, (report,) = choose(tmp_path)
    assert step == 4 and report.startswith("checkpoint 8 is damaged (")


def test_files_outside_are_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    """Even if their digests are right."""
    fill(tmp_path, 4, 8)
    for name in (str(tmp_path / "8" / "default" / "array"), "../8/default/array"):
        digests = json.loads((tmp_path / "4" / MANIFEST).read_text())
        digests[name] = json.loads((tmp_path / "8" / MANIFEST).read_text())["default/array"]
        (tmp_path / "4" / MANIFEST).write_text(json.dumps(digests))
        assert manifest.damage(tmp_path / "4") == f"damaged ({MANIFEST}: cannot be read)"


@pytest.mark.parametrize("how", ["folder", "pipe"])
def test_a_file_that_is_something_else_now_is_missing(tmp_path: Path, how: str) -> None:
    fill(tmp_path, 4, 8)
    path = tmp_path / "8" / "default" / "array"
    path.unlink()
    path.mkdir() if how == "folder" else os.mkfifo(path)
    assert choose(tmp_path)[1] == ["checkpoint 8 is damaged (default/array: missing): using checkpoint 4"]


def test_what_was_set_aside_stays_if_no_good_one_is_left(tmp_path: Path) -> None:
    fill(tmp_path, 4, 8)
    (tmp_path / "8" / "default" / "array").write_text("")
    assert choose(tmp_path)[0] == 4
    (tmp_path / "4" / "default" / "array").unlink()
    text = refusal(tmp_path)
    assert "checkpoint 4 is damaged (default/array: missing), 8.damaged was set aside. Nothing was moved" in text
    shutil.rmtree(tmp_path / "4")
    assert "resume from: 8.damaged was set aside." in refusal(tmp_path)
    # What had brought the disk back.
    (tmp_path / "8.damaged" / "default" / "array").write_text("array of 8")
    (tmp_path / "8.damaged").rename(tmp_path / "8")
    assert choose(tmp_path) == (8, [])


def test_a_process_that_is_killed_in_its_first_save_starts_again(tmp_path: Path) -> None:
    for number in range(3):
        fill(tmp_path, 4)
        (tmp_path / "4" / MANIFEST).unlink()
        step, reports = choose(tmp_path)
        assert step is None
        assert reports == [f"checkpoint 4 is unfinished ({MANIFEST}: missing): training starts from the beginning"]
        assert len(list(tmp_path.iterdir())) == number + 1
    fill(tmp_path, 4, 8)
    (tmp_path / "8" / MANIFEST).unlink()
    assert choose(tmp_path)[0] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "8.damaged"]


@pytest.mark.parametrize("change", [shutil.move, shutil.copytree])
@pytest.mark.parametrize("name", ["12", "7"])
def test_a_checkpoint_knows_its_step(tmp_path: Path, change: Callable[[Path, Path], object], name: str) -> None:
    directory = fill(tmp_path, 4)
    change(directory / "4", directory / name)
    text = f"{directory / name} is checkpoint 4 by its contents: rename or remove that folder"
    assert refusal(directory) == text


def test_names_that_are_no_steps_are_not_looked_at(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    for name in ("08", "٨", "8.copy"):
        shutil.copytree(tmp_path / "4", tmp_path / name)
    assert choose(tmp_path) == (4, [])


def test_a_checkpoint_knows_its_run(tmp_path: Path) -> None:
    directory = fill(tmp_path, 4, run=RUN)
    assert choose(directory, {**RUN, "epochs": (1, 2), "new": None}) == (4, [])
    text = refusal(directory, {"seed": 1, "data": {"name": "digits", "digest": "cd", "classes": 10}, "epochs": [1]})
    assert text == (
        f"checkpoint 4 in {directory} is of another run:\n"
        "  data.classes: null there, 10 now\n"
        '  data.digest: "ab" there, "cd" now\n'
        "  epochs: [1, 2] there, [1] now\n"
        "  seed: 0 there, 1 now\n"
        "use the directory of this run, or remove that checkpoint"
    )
    assert choose(directory) == (4, [])  # without facts, nothing is compared


def test_a_checkpoint_without_facts_is_trusted_and_said(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    assert choose(tmp_path, RUN) == (4, ["checkpoint 4 does not record its run, which is not compared"])
    (tmp_path / "4" / ORIGIN).unlink()  # as earlier versions wrote it
    (tmp_path / "4" / MANIFEST).unlink()
    manifest.write_manifest(tmp_path / "4")
    assert choose(tmp_path, RUN) == (4, ["checkpoint 4 does not record its run, which is not compared"])
    assert choose(tmp_path) == (4, [])


def test_records_are_on_the_disk_before_a_checkpoint_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, done = tmp_path / "metrics.jsonl", []
    lines.write_text("{}\n")
    usual, usual_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        usual(descriptor)

    def replace(source: Path, target: Path) -> None:
        done.append(f"now {target.name}")
        usual_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "steps" / "4").mkdir(parents=True)
    (tmp_path / "steps" / "4" / "array").touch()
    StepFolders(tmp_path / "steps", None, print).seal(4, [lines, tmp_path / "absent"], keep=1)
    counts = done.index(f"now {MANIFEST}")
    assert {"metrics.jsonl", "array", "4", ORIGIN} <= set(done[:counts])
    assert done[counts + 1 :] == ["4"]
