"""The folder of compiled steps that all programs of a user share."""

import os

import pytest

from experiments.folders import compilation_cache
from experiments.folders.compilation_cache import VARIABLE, use_compilation_cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_it_is_in_the_cache_folder_of_the_user(home):
    use_compilation_cache()
    (folder,) = (home / "kd_local").iterdir()
    assert os.environ[VARIABLE] == str(folder)
    assert folder.name.startswith("jaxlib-0.") and folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_the_user_is_kept(home, monkeypatch):
    monkeypatch.setenv(VARIABLE, "/mine")
    use_compilation_cache()
    assert os.environ[VARIABLE] == "/mine" and list(home.iterdir()) == []


def test_without_a_folder_that_can_be_made_there_is_none(home):
    (home / "kd_local").write_text("a file")
    use_compilation_cache()
    assert VARIABLE not in os.environ


def test_the_entries_not_used_for_the_longest_time_are_deleted(home, monkeypatch):
    use_compilation_cache()
    folder = next((home / "kd_local").iterdir())
    for used, name in enumerate(("oldest", "middle", "newest")):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (used, used))
    os.utime(folder / "oldest", (3, 0))  # read since
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(compilation_cache, "LARGEST_BYTES", 20)
    use_compilation_cache()
    assert sorted(path.name for path in folder.iterdir()) == ["newest", "oldest"]
