"""The training program in two processes on one machine, as it runs on several hosts."""

import json
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.support.processes import finish_all, newest_checkpoint, run, start_two, wait_until

SETTING = (
    "--config.epochs=3",
    "--config.optimizer.warmup_epochs=1",
    "--config.local.modules=2",
    "--config.local.context=R1",
    "--config.batch_size=128",
    "--config.checkpoint.seconds=0.5",
    "--config.distributed.heartbeat_seconds=10",
    "--config.distributed.start_seconds=60",
)
BOUND = 60  # seconds: heartbeat, the grace of the runtime, and a busy machine


def start_both(workdir: Path) -> list[subprocess.Popen[str]]:
    return start_two("train", f"--workdir={workdir}", "--config.mesh.data=2", *SETTING)


def ended(processes: list[subprocess.Popen[str]], seconds: float = 400) -> tuple[list[int], list[str]]:
    """Exit status and everything printed of each."""
    ends = finish_all(processes, seconds)
    return [status for status, _, _ in ends], [out + err for _, out, err in ends]


def wait_for_checkpoint(workdir: Path, processes: list[subprocess.Popen[str]]) -> None:
    wait_until(lambda: newest_checkpoint(workdir) > 0, processes)


def last_record(workdir):
    """The metrics of the last epoch, which depend on every parameter and statistic and on every batch of the epoch."""
    record = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        name: value
        for name, value in record.items()
        if name not in ("seconds", "images_per_second", "data_wait_seconds", "crc32")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes without interruption."""
    workdir = tmp_path_factory.mktemp("whole")
    statuses, outputs = ended(start_both(workdir))
    assert statuses == [0, 0], outputs
    assert "test_accuracy" in outputs[0] and "test_accuracy" not in outputs[1]  # one of them tells and writes
    return workdir


@pytest.mark.exhaustive
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_resumes_with_the_same_result(whole, tmp_path, lost):
    processes = start_both(tmp_path)
    wait_for_checkpoint(tmp_path, processes)
    processes[lost].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (status,), (output,) = ended([processes[1 - lost]], BOUND)
    assert time.monotonic() - killed < BOUND
    assert status not in (0, -signal.SIGABRT)
    assert re.search(rf"error: .*process {lost} .*was lost; checkpoint \d+ in .* is the last good one", output), output
    assert not (tmp_path / "summary.json").exists()
    processes[lost].communicate()

    statuses, outputs = ended(start_both(tmp_path))
    assert statuses == [0, 0], outputs
    assert last_record(tmp_path) == last_record(whole)


@pytest.mark.exhaustive
def test_a_signal_saves_both_processes_and_one_process_resumes_alone(whole, tmp_path):
    processes = start_both(tmp_path)
    wait_for_checkpoint(tmp_path, processes)
    processes[1].send_signal(signal.SIGTERM)  # the one that writes nothing
    statuses, outputs = ended(processes)
    assert statuses == [128 + signal.SIGTERM] * 2, outputs
    stopped = [re.search(r"interrupted by SIGTERM after step (\d+)", output) for output in outputs]
    assert stopped[0] and stopped[1] and stopped[0][1] == stopped[1][1]

    status, _, err = run(
        "train", f"--workdir={tmp_path}", *(option for option in SETTING if "distributed." not in option)
    )
    assert status == 0, err
    assert "warning" not in err
    # Sums in another order: rounding, which a few dozen steps make larger.
    assert last_record(tmp_path) == pytest.approx(last_record(whole), rel=0.05, abs=0.03)


@pytest.mark.exhaustive
def test_a_run_that_diverges_ends_both_processes_and_keeps_the_last_good_checkpoint(tmp_path):
    """The warm-up's first epoch trains; the rate of the second makes the parameters infinite."""
    rates = ("--config.optimizer.learning_rate=10000", "--config.data.train_examples=1024")
    processes = start_two("train", f"--workdir={tmp_path}", "--config.mesh.data=2", *SETTING, *rates)
    seconds = []
    waiting = [
        threading.Thread(target=lambda one=one: seconds.append((one.wait(), time.monotonic()))) for one in processes
    ]
    for thread in waiting:
        thread.start()
    statuses, outputs = ended(processes)
    for thread in waiting:
        thread.join()
    assert statuses == [1, 1], outputs
    messages = [re.search(r"^error: .*", output, re.MULTILINE) for output in outputs]
    assert messages[0] and messages[1] and messages[0][0] == messages[1][0]
    found = re.search(
        r"after step (\d+): the \w+ of module0\d .*; checkpoint (\d+) in .* is the last good one", messages[0][0]
    )
    assert found, messages[0]
    assert int(found[2]) == newest_checkpoint(tmp_path) < int(found[1])
    assert not any("Traceback" in output or "Terminating process" in output for output in outputs), outputs
    assert abs(seconds[0][1] - seconds[1][1]) < 10
    assert not (tmp_path / "summary.json").exists()
