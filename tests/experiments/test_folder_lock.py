"""The lock of a folder: who holds it, when it is taken over, and when it is not."""

import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict, replace

import pytest

from experiments.folders import folder_lock, lock_holder
from experiments.folders.folder_lock import LOCK, FolderLock, InUseError, lock_folder
from experiments.folders.lock_holder import WIDTH, Holder, Process

ENDED = Process(2**22 + 1, 1)  # more than Linux gives


def leave(folder, **changes) -> bytes:
    """A lock whose holder has ended, with changes of its record."""
    text = json.dumps(asdict(replace(Holder.this(), process=ENDED, **changes))).encode()
    (folder / LOCK).write_bytes(text)
    return text


def assert_held_by_this_process(folder) -> None:
    with FolderLock(folder):
        holder = Holder.parse((folder / LOCK).read_bytes())
        assert holder is not None and holder.process == Process.of(os.getpid()) and holder.process.runs()
    assert not list(folder.iterdir())


def test_one_holder_at_a_time(tmp_path):
    with FolderLock(tmp_path) as first:
        first.row_started(os.getpid())
        text = (tmp_path / LOCK).read_bytes()
        with pytest.raises(
            InUseError, match=rf"in use by process {os.getpid()} on host .* since 2.*: wait .*another --workdir$"
        ):
            lock_folder(tmp_path)
        assert (tmp_path / LOCK).read_bytes() == text
        first.row_ended(os.getpid())
    assert_held_by_this_process(tmp_path)


def test_the_folder_is_made_or_the_error_names_it(tmp_path):
    lock_folder(tmp_path / "new" / "run").release()
    assert not list((tmp_path / "new" / "run").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="workdir .*file' cannot be used: File exists; use another --workdir"):
        lock_folder(tmp_path / "file")


def test_a_lock_that_is_released_twice_leaves_that_of_the_next_holder(tmp_path):
    lock = lock_folder(tmp_path)
    lock.release()
    with FolderLock(tmp_path):
        lock.release()
        assert (tmp_path / LOCK).exists()


def test_a_lock_that_was_removed_by_hand_leaves_that_of_the_next_holder(tmp_path):
    first = lock_folder(tmp_path)
    (tmp_path / LOCK).unlink()
    with FolderLock(tmp_path):
        first.release()
        assert (tmp_path / LOCK).exists()


def test_the_lock_of_an_ended_process_is_taken_over(tmp_path):
    leave(tmp_path)
    assert_held_by_this_process(tmp_path)


def test_a_process_with_the_number_of_the_holder_is_not_the_holder(tmp_path):
    (tmp_path / LOCK).write_bytes(json.dumps(asdict(replace(Holder.this(), process=Process(os.getpid(), 1)))).encode())
    assert_held_by_this_process(tmp_path)


def test_a_lock_from_before_the_last_start_of_this_host_is_taken_over(tmp_path):
    leave(tmp_path, boot="earlier")
    assert_held_by_this_process(tmp_path)


@pytest.mark.parametrize("host", ["node7", "localhost"])
def test_the_lock_of_another_host_is_named_with_the_way_out(tmp_path, monkeypatch, host):
    if host == "localhost":  # a name that several hosts have
        monkeypatch.setattr(socket, "gethostname", lambda: host)
    text = leave(tmp_path, host=host, boot="other", since="2026-01-02 03:04:05 +0000")
    with pytest.raises(InUseError) as error:
        FolderLock(tmp_path).acquire()
    assert str(error.value) == (
        f"workdir {str(tmp_path)!r} is in use by process {ENDED.number} on host {host} since 2026-01-02 03:04:05 +0000"
        f": wait for its end, use another --workdir, or remove {tmp_path / LOCK} if that process has ended"
    )
    assert (tmp_path / LOCK).read_bytes() == text and len(list(tmp_path.iterdir())) == 1


def test_the_lock_of_an_earlier_version_is_taken_over(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": "node7", "sweep": 17, "row": None}) + "\n")
    assert_held_by_this_process(tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"[]", b"null", b"5", b"{}", b"\xff\xfe", b'{"process": -1}', b'{"process": {"number": "7"}}', b" " * WIDTH],
)
def test_a_damaged_lock_that_nothing_holds_is_taken_over(tmp_path, text):
    (tmp_path / LOCK).write_bytes(text)
    assert_held_by_this_process(tmp_path)


def test_an_empty_lock_is_given_time_for_its_record(tmp_path, monkeypatch):
    (tmp_path / LOCK).touch()
    waited = []
    monkeypatch.setattr(folder_lock.time, "sleep", waited.append)
    monkeypatch.setattr(folder_lock.time, "monotonic", lambda: float(len(waited)))
    assert_held_by_this_process(tmp_path)
    assert waited


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "other").write_text("precious")
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "other")
    with pytest.raises(InUseError, match="its .lock cannot be opened"):
        FolderLock(tmp_path / "run").acquire()
    (tmp_path / "run" / LOCK).unlink()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "new")
    with pytest.raises(InUseError, match="its .lock cannot be opened"):
        FolderLock(tmp_path / "run").acquire()
    assert (tmp_path / "other").read_text() == "precious" and not (tmp_path / "new").exists()


def refuse(*_, **__):
    raise OSError(errno.EOPNOTSUPP, "not supported")


def test_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse)
    with FolderLock(tmp_path), pytest.raises(InUseError, match=f"in use by process {os.getpid()} "):
        FolderLock(tmp_path).acquire()
    assert_held_by_this_process(tmp_path)


def test_without_flock_no_lock_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse)
    with FolderLock(tmp_path), pytest.raises(InUseError, match=f"in use by process {os.getpid()} "):
        FolderLock(tmp_path).acquire()
    leave(tmp_path)
    with pytest.raises(InUseError, match=f"in use by process {ENDED.number} .* or remove .* if that process has ended"):
        FolderLock(tmp_path).acquire()


def test_a_disk_without_room_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ValueError, match="cannot be used: No space left on device"):
        lock_folder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_which_processes_run(monkeypatch):
    this = Process.of(os.getpid())
    assert this.runs() and not replace(this, started=this.started - 1).runs()
    assert not any(Process(number, None).runs() for number in (-1, 0, os.getpid(), ENDED.number))
    monkeypatch.setattr(lock_holder, "_space", lambda: "another container")
    holder = Holder.this()
    monkeypatch.undo()
    assert holder.on_this_host() and not holder.same_numbers()
