"""The lock of a folder: its holder, the process that is asked to stop, and a program that does not get it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.folders import folder_lock
from experiments.folders.folder_lock import LOCK, FolderLock, Interrupted, InUseError
from experiments.sweep.rows import Run, read_rows
from experiments.sweep.series import run_series


def lock_of(folder: Path, reports: list[str] | None = None, stopped=lambda: False) -> FolderLock:
    return FolderLock(folder, report=[].append if reports is None else reports.append, stopped=stopped)


def record(folder: Path, **changes) -> None:
    """Leave the text of a holder whose sweep has ended."""
    process = ended()
    holder = {"host": socket.gethostname(), "sweep": process, "sweep_started": 1, "row": None, "row_started": None}
    (folder / LOCK).write_text(json.dumps(holder | changes) + "\n")


def ended() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def row(tmp_path):
    """A process that holds the lock of the folder, as a row of a killed sweep does, until it gets SIGTERM."""
    with (tmp_path / LOCK).open("a") as file:
        folder_lock.fcntl.flock(file, folder_lock.fcntl.LOCK_EX)
        process = subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()])
    yield process
    process.kill()
    process.wait()


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_holder_at_a_time(tmp_path):
    with lock_of(tmp_path) as first:
        first.name_row(os.getpid())
        with pytest.raises(InUseError, match=rf"is in use already, process {os.getpid()} on .*use another --workdir"):
            lock_of(tmp_path).__enter__()
    with lock_of(tmp_path):
        pass


def test_the_holder_is_recorded_as_soon_as_the_lock_is_held(tmp_path):
    record(tmp_path, row=1)
    with lock_of(tmp_path):
        holder = json.loads((tmp_path / LOCK).read_text())
    assert (holder["sweep"], holder["row"]) == (os.getpid(), None)
    assert holder["sweep_started"] == folder_lock._start_time(os.getpid()) > 0


def test_the_row_of_a_killed_sweep_is_asked_to_stop_once(tmp_path, row):
    record(tmp_path, row=row.pid, row_started=folder_lock._start_time(row.pid))
    reports = []
    threading.Thread(target=row.wait).start()  # so that it is no zombie
    with lock_of(tmp_path, reports):
        assert row.wait() == -signal.SIGTERM
    assert reports == [f"the row of a killed sweep still runs (process {row.pid}): asked to save and stop"]


def test_a_row_that_ends_before_it_is_signalled(tmp_path, row, monkeypatch):
    record(tmp_path, row=row.pid, row_started=folder_lock._start_time(row.pid))
    kill = os.kill

    def late(process, number):
        if number == signal.SIGTERM:
            row.kill()
            row.wait()
        kill(process, number)

    monkeypatch.setattr(os, "kill", late)
    with lock_of(tmp_path):
        pass


def test_a_process_that_has_the_number_of_an_earlier_row_is_never_signalled(tmp_path, row):
    other = subprocess.Popen(["sleep", "60"])
    record(tmp_path, row=other.pid, row_started=folder_lock._start_time(other.pid) - 1)
    reports = []

    def later():
        time.sleep(0.3)
        row.terminate()
        row.wait()

    threading.Thread(target=later).start()
    with lock_of(tmp_path, reports):
        assert other.poll() is None
    other.kill()
    assert other.wait() == -signal.SIGKILL
    assert reports == [f"a row of a killed sweep still runs in {tmp_path}: waiting for its end"]


def test_the_record_of_an_earlier_holder_is_read_again(tmp_path):
    record(tmp_path)
    with lock_of(tmp_path):
        record(tmp_path)  # as before the holder has recorded itself
        reports = []

        def now():
            if len(reports) == 1:
                record(tmp_path, sweep=os.getpid(), sweep_started=folder_lock._start_time(os.getpid()))
            return False

        with pytest.raises(InUseError, match=f"process {os.getpid()} on"):
            lock_of(tmp_path, reports, stopped=now).__enter__()


def test_a_record_without_start_times(tmp_path, row):
    """As earlier versions wrote it: the row is waited for."""
    (tmp_path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "sweep": ended(), "row": row.pid}))
    with pytest.raises(Interrupted):
        lock_of(tmp_path, stopped=iter([False, True]).__next__).__enter__()
    assert row.poll() is None


def test_a_holder_that_has_recorded_nothing_yet(tmp_path, row):
    with pytest.raises(InUseError, match="is in use already, by a program just started: wait"):
        lock_of(tmp_path).__enter__()


def test_an_interrupted_wait_does_not_take_the_lock(tmp_path, row):
    record(tmp_path)
    with pytest.raises(Interrupted), lock_of(tmp_path, stopped=lambda: True):
        raise AssertionError("held")
    row.kill()
    row.wait()
    with lock_of(tmp_path):
        pass


def test_a_sweep_interrupted_while_waiting_writes_nothing(tmp_path, row, capsys):
    record(tmp_path)
    table = Path(__file__).parents[2] / "experiments" / "configs" / "contsup" / "table1.py"
    rows = read_rows(str(table), [], {})
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit) as stopped:
        run_series(rows, [Run("k=1", 0)], tmp_path, command="sweep")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "error: interrupted by SIGTERM" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_start_times():
    assert folder_lock._start_time(ended()) is None
    ours, parents = (folder_lock._start_time(process) for process in (os.getpid(), os.getppid()))
    assert ours >= parents > 0
