"""Programs that are sent signals: at each phase, once and twice, with children."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments.folders.folder_lock import LOCK
from experiments.folders.lock_holder import Process
from tests.support.processes import ROOT, finish, finish_all, newest_checkpoint, start, wait_until

SECONDS = 5.0
TABLE = f"--config={ROOT}/experiments/configs/contsup/table2.py"
# Arguments that are not refused, so that each program imports JAX.
PROGRAMS = {
    **dict.fromkeys(("train", "memory", "speed", "pipeline"), ()),
    "sweep": (TABLE, "--config.network.name=resnet8", "--config.data.name=digits", "--rows=1"),
    "evaluate": (f"--weights={ROOT}/README.md",),
    "export": (f"--workdir={ROOT}/docs", f"--output={ROOT}/exported"),
}
SMALL = [
    "--config.epochs=400",
    "--config.data.train_examples=160",
    "--config.batch_size=32",
    "--config.local.modules=2",
    "--config.local.context=R1",
    "--config.optimizer.warmup_epochs=1",
]


def ends(process: subprocess.Popen[str], number: int) -> str:
    """The standard error of a program that ends in time with the status of a signal that it was just sent."""
    sent = time.monotonic()
    status, _, err = finish(process, 60)
    assert time.monotonic() - sent < SECONDS
    assert status == 128 + number, err
    assert err.count("\n") == 1 and err.startswith(f"error: interrupted by {signal.Signals(number).name}"), err
    return err


# A program that says when its main thread has reached a place.
SCRIPT = """
from experiments.ending import ENDING
ENDING.watch()
import subprocess, sys, time
ENDING.left = "kept"
ENDING.at_end(lambda: print("cleaned", flush=True))
{before}
print("here", flush=True)
{after}
"""


def script(before: str, after: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(before=before, after=after)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_where_nothing_would_be_lost_it_ends_at_once(number):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("these tests were started by nohup, and the programs that they start ignore the signal too")
    process = script("", "time.sleep(60)")
    process.send_signal(number)
    status, out, err = finish(process, SECONDS)
    assert (status, out, err) == (128 + number, "cleaned\n", f"error: interrupted by {number.name}; kept\n")


LOSES = "ENDING.loses = lambda: True"
SAVES = """
while ENDING.received is None:
    time.sleep(0.01)
time.sleep(1)  # saves
"""


def test_where_work_would_be_lost_the_main_thread_ends_it():
    process = script(LOSES, SAVES + "ENDING.end('interrupted, saved', 128 + ENDING.received)")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # at once: the same request
    status, out, err = finish(process, SECONDS)
    assert (status, out, err) == (143, "cleaned\n", "error: interrupted, saved\n")


def test_a_second_signal_ends_it():
    process = script(LOSES, "time.sleep(60)")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert finish(process, SECONDS) == (143, "cleaned\n", "error: interrupted by SIGTERM; kept\n")


def test_once_all_is_saved_the_main_thread_has_some_seconds():
    process = script(LOSES, SAVES + "ENDING.loses = lambda: False\ntime.sleep(60)")
    process.send_signal(signal.SIGINT)
    assert finish(process, 20) == (130, "cleaned\n", "error: interrupted by SIGINT; kept\n")


def test_children_end_too():
    child = "child = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE, text=True)"
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    lines = [child.format(code=deaf), "child.stdout.readline()", "print(child.pid, file=sys.stderr, flush=True)"]
    process = script("\n".join(lines), "with ENDING.child(child):\n    time.sleep(60)")
    number = int(process.stderr.readline())
    started = Process.of(number)
    assert started.runs()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert finish(process, SECONDS)[0] == 143
    wait_until(lambda: not started.runs(), seconds=2)


def test_a_forked_process_has_the_usual_handlers():
    fork = """
import os, signal
if not (child := os.fork()):
    time.sleep(60)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
assert os.waitpid(child, 0)[1] == signal.SIGTERM
"""
    assert finish(script("", fork), SECONDS) == (0, "cleaned\n", "")


def test_what_nohup_ignores_stays_ignored():
    ignored = subprocess.Popen(
        ["nohup", sys.executable, "-c", SCRIPT.format(before="", after="time.sleep(1)")], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ignored.stdout.readline() == "here\n"
    ignored.send_signal(signal.SIGHUP)
    assert finish(ignored, SECONDS)[:2] == (0, "cleaned\n")


def handles(process: int, number: int) -> bool:
    """Whether a process that runs has a handler of a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
    return caught is None or bool(int(caught[1], 16) >> number - 1 & 1)


def test_every_program_while_it_imports(tmp_path):
    processes = {
        name: start(name, f"--workdir={tmp_path / name}", *arguments) for name, arguments in PROGRAMS.items()
    } | {"input_bench": start("input_bench")}
    for process in processes.values():  # on a busy machine Python itself starts slowly
        wait_until(lambda pid=process.pid: handles(pid, signal.SIGTERM), [process])
    time.sleep(0.3)
    for process in processes.values():
        process.send_signal(signal.SIGTERM)
    for name, (status, out, err) in zip(processes, finish_all(list(processes.values()), 30), strict=True):
        assert (status, out, err) == (143, "", "error: interrupted by SIGTERM\n"), name


def test_training_before_the_first_step_and_after_steps(tmp_path):
    arguments = ["train", f"--workdir={tmp_path}", *SMALL, "--config.checkpoint.seconds=1000"]
    process = start(*arguments, JAX_ENABLE_COMPILATION_CACHE="false")
    wait_until(lambda: (tmp_path / "checkpoints").exists(), [process])
    time.sleep(1)  # compiles
    process.send_signal(signal.SIGTERM)
    assert ends(process, signal.SIGTERM).endswith(f"SIGTERM; the same command resumes in {tmp_path}\n")
    assert newest_checkpoint(tmp_path) == 0 and not (tmp_path / LOCK).exists()

    process = start(*arguments)
    wait_until(lambda: (tmp_path / "steps.jsonl").exists() and (tmp_path / "steps.jsonl").read_text(), [process])
    process.send_signal(signal.SIGINT)
    err = ends(process, signal.SIGINT)
    step = int(re.search(r"after step (\d+); saved in", err)[1])
    assert newest_checkpoint(tmp_path) == step > 0 and not (tmp_path / LOCK).exists()


def test_two_runs_in_a_folder(tmp_path):
    arguments = ["train", f"--workdir={tmp_path}", *SMALL]
    first = start(*arguments)
    wait_until(lambda: newest_checkpoint(tmp_path), [first])
    status, out, err = finish(start(*arguments))
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: workdir '{tmp_path}' is in use by process {first.pid} on host .*\n", err)
    first.kill()
    first.communicate()
    assert (tmp_path / LOCK).exists()
    last = start(*arguments)
    wait_until(lambda: Process.of(last.pid).runs() and str(last.pid) in (tmp_path / LOCK).read_text(), [last])
    last.send_signal(signal.SIGTERM)
    ends(last, signal.SIGTERM)


@pytest.mark.exhaustive
def test_of_two_runs_that_start_at_once_one_trains(tmp_path):
    arguments = ["train", f"--workdir={tmp_path}", "--config.epochs=2", *SMALL[1:]]
    ended = finish_all([start(*arguments) for _ in range(2)])
    statuses = [status for status, _, _ in ended]
    assert sorted(statuses) == [0, 2], ended
    assert f"workdir '{tmp_path}' is in use by " in ended[statuses.index(2)][2]
    assert not (tmp_path / LOCK).exists()


def children(process: subprocess.Popen[str]) -> list[Process]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [Process.of(int(number)) for number in text.split()]


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("sweep", [*PROGRAMS["sweep"], *SMALL[:3]]),
        ("memory", ["--modules=1", "--contexts=R0", "--nodecoders"]),
        ("speed", ["--methods=end_to_end", "--forms=separate"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("later", [0.5, 6.0])
def test_programs_with_children(tmp_path, program, arguments, number, later):
    process = start(program, f"--workdir={tmp_path}", *arguments)
    wait_until(lambda: children(process), [process])
    time.sleep(later)
    running = children(process)
    os.kill(process.pid, number)
    ends(process, number)
    wait_until(lambda: not any(child.runs() for child in running), seconds=2)
    assert not list(tmp_path.rglob(LOCK))


@pytest.mark.exhaustive
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_memory_program_while_the_compiler_of_tpus_runs(tmp_path, number):
    """Neither its handlers of signals nor its warnings are seen."""
    process = start("memory", "--target=tpu:v5e", "--modules=1", "--nodecoders", f"--workdir={tmp_path}")
    wait_until(lambda: (tmp_path / LOCK).exists(), [process])
    time.sleep(2)
    process.send_signal(number)
    assert f"saved in {tmp_path}: the same command" in ends(process, number)
