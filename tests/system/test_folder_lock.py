"""The lock of a folder among processes: which one holds it, which is asked to stop, and which one wins."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from experiments.ending import Ending
from experiments.folders.folder_lock import LOCK, FolderLock, Interrupted, InUseError
from experiments.folders.lock_holder import Holder, Process
from experiments.sweep.rows import Run, read_rows
from experiments.sweep.series import run_series
from tests.support.processes import ROOT


def lock_of(folder: Path, reports: list[str] | None = None, stopped=lambda: False) -> FolderLock:
    return FolderLock(folder, report=[].append if reports is None else reports.append, stopped=stopped)


def record(folder: Path, **changes) -> None:
    """Leave the text of a holder whose sweep has ended."""
    holder = replace(Holder.this(), process=Process(ended(), 1))
    (folder / LOCK).write_text(json.dumps(asdict(replace(holder, **changes))) + "\n")


def ended() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def row(tmp_path):
    """A process that holds the lock of the folder, as a row of a killed sweep does, until it gets SIGTERM."""
    with (tmp_path / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()])
    yield process
    process.kill()
    process.wait()


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_row_of_a_killed_sweep_is_asked_to_stop_once(tmp_path, row):
    record(tmp_path, rows=(Process.of(row.pid),))
    reports = []
    threading.Thread(target=row.wait).start()  # so that it is no zombie
    with lock_of(tmp_path, reports):
        assert row.wait() == -signal.SIGTERM
    assert reports == [f"the row of a killed sweep still runs (process {row.pid}): asked to save and stop"]


def test_a_row_that_ends_before_it_is_signalled(tmp_path, row, monkeypatch):
    record(tmp_path, rows=(Process.of(row.pid),))
    kill = os.kill

    def late(process, number):
        if number == signal.SIGTERM:
            row.kill()
            row.wait()
        kill(process, number)

    monkeypatch.setattr(os, "kill", late)
    with lock_of(tmp_path):
        pass


def test_a_process_that_does_not_hold_the_lock_is_never_signalled(tmp_path, row):
    other = subprocess.Popen(["sleep", "60"])
    record(tmp_path, rows=(Process.of(other.pid),))  # which does not have the lock open
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


@pytest.mark.parametrize("process", [Process(-1, None), Process(0, None), Process(1, None), Process(1, 1)])
def test_a_record_that_names_no_row_of_this_host(tmp_path, row, process):
    record(tmp_path, rows=(process,))
    reports = []
    with pytest.raises(Interrupted):
        lock_of(tmp_path, reports, stopped=iter([False, True]).__next__).acquire()
    assert row.poll() is None
    assert reports == [f"a row of a killed sweep still runs in {tmp_path}: waiting for its end"]


def test_the_record_of_an_earlier_holder_is_read_again(tmp_path, row):
    record(tmp_path)
    reports = []

    def now():
        if len(reports) == 1:
            record(tmp_path, process=Process.of(row.pid))
        return False

    with pytest.raises(InUseError, match=f"process {row.pid} on host"):
        lock_of(tmp_path, reports, stopped=now).acquire()


def test_another_program_does_not_wait_for_what_a_killed_one_left(tmp_path, row):
    record(tmp_path)
    with pytest.raises(InUseError, match=r"is in use by a process that was started by process \d+ on host"):
        FolderLock(tmp_path).acquire()


def test_a_holder_that_has_recorded_nothing(tmp_path, row):
    with pytest.raises(InUseError, match="is in use by a program that has just started: wait"):
        lock_of(tmp_path).acquire()


def test_interrupted_while_waiting_it_is_not_held(tmp_path, row):
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
    ending = Ending()
    timer = threading.Timer(0.5, lambda: setattr(ending, "received", signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit) as stopped:
        run_series(rows, [Run("k=1", 0)], tmp_path, command="sweep", ending=ending)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "error: interrupted by SIGTERM" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


HOLD = """
import sys, time
from pathlib import Path
from experiments.folders.folder_lock import FolderLock, InUseError
lock = FolderLock(Path(sys.argv[1]))
time.sleep(max(float(sys.argv[2]) - time.time(), 0))
try:
    lock.acquire()
except InUseError as error:
    sys.exit(str(error))
print("held", flush=True)
time.sleep(60)
"""


def test_of_several_starts_at_once_one_wins_and_a_killed_one_is_followed(tmp_path):
    for _ in range(2):  # without a lock, then with that of the killed winner
        at = str(time.time() + 3)
        processes = [
            subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), at], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(6)
        ]  # fmt: skip
        until(lambda processes=processes: sum(process.poll() is not None for process in processes) == 5, 60)
        (winner,) = [process for process in processes if process.poll() is None]
        assert winner.stdout.readline() == "held\n"
        for loser in (process for process in processes if process is not winner):
            assert f"in use by process {winner.pid} on host " in loser.communicate()[1]
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        winner.kill()
        winner.communicate()
    with FolderLock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
