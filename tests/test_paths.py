"""Paths as users write them."""

import os
from pathlib import Path

import pytest

from kd_local.paths import make_folder, near_names, read_existing, read_folder, read_path


def test_home_and_variables_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/one")
    monkeypatch.setenv("SPACE", "/space")
    assert read_path("~/runs", "workdir") == Path("/home/one/runs")
    assert read_path(" $SPACE/x/${SPACE} ", "workdir") == Path("/space/x//space")
    assert read_path("x[/y]z", "workdir") == Path("x[/y]z")


@pytest.mark.parametrize("text", ["", " ", "a\0b", "$NOT_SET_ANYWHERE/x", "~nobody_of_that_name/x"])
def test_paths_that_are_refused(text):
    with pytest.raises(ValueError, match="workdir is "):
        read_path(text, "workdir")


def test_root_and_files_are_no_folders_for_results(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in (("/", "root"), ("/..", "root"), (tmp_path / "file", "is a file: give a folder")):
        with pytest.raises(ValueError, match=message):
            read_folder(path, "workdir")


def test_a_missing_path_lists_near_names(tmp_path):
    for name in ("teacher", "student", "other"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="weights '.*techer': there is no such file or folder; there are ") as raised:
        read_existing(tmp_path / "techer", "weights")
    error = str(raised.value)
    assert read_existing(tmp_path / "teacher", "weights") == tmp_path / "teacher"
    assert error.index("/teacher") < error.index("/other")
    assert near_names("b", ["a", "b", "c"], most=2)[0] == "b"


def test_a_folder_in_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="workdir '.*/file/a/b' cannot be made, because '.*/file' is a file"):
        read_folder(tmp_path / "file" / "a" / "b", "workdir")
    assert read_folder(tmp_path / "new" / "a", "workdir") == tmp_path / "new" / "a"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    for path in ("/dev/null/x", "/dev/null/x/y"):
        with pytest.raises(ValueError, match=f"profile '{path}' cannot be made, because '/dev/null' is no folder"):
            read_folder(path, "profile")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match="link' is no folder: give a folder"):
        read_folder(tmp_path / "link", "workdir")
    with pytest.raises(ValueError, match="profile '/proc/nowhere' cannot be used: No such file"):
        make_folder(Path("/proc/nowhere"), "profile")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match="workdir '.*/new/a' cannot be made: this user cannot write to "):
        read_folder(tmp_path / "new" / "a", "workdir")
    assert read_folder(tmp_path, "teacher.cache") == tmp_path  # one that is there may be for reading
