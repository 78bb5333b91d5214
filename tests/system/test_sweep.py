"""The sweep program: bad input, failing rows, stops, kills and resumption."""

import csv
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.ending import Ending
from experiments.folders.starts import read_starts
from experiments.sweep.row_process import execute
from tests.support.processes import ROOT, command, refused, wait_until

TABLE2 = "experiments/configs/contsup/table2.py"


def run_python(code: str, tmp_path: Path) -> str | None:
    with (tmp_path / "lock").open("w") as lock:
        return execute([sys.executable, "-c", code], ending=Ending(), descriptor=lock.fileno(),
                       started=lambda process: None, ended=lambda process: None)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("print('hello')", None),
        ("import sys; print('error: no such thing', file=sys.stderr); sys.exit(2)", "no such thing"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; print('jax.errors.E: RESOURCE\\n----', file=sys.stderr); sys.exit(1)", "----"),
        ("import sys; print('a.XError: RESOURCE\\n----\\nhint', file=sys.stderr); sys.exit(1)", "a.XError: RESOURCE"),
        ("raise SystemExit(7)", "exit status 7"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, perhaps because memory ran out"),
        ("import os; os.kill(os.getpid(), 6)", "killed by SIGABRT"),
    ],
)
def test_a_failed_row_is_reported_with_its_last_error_line(code, error, tmp_path):
    assert run_python(code, tmp_path) == error


SMALL = [
    f"--config={TABLE2}",
    "--config.network.name=resnet8",
    "--config.data.name=digits",
    "--config.batch_size=32",
]
TINY = [*SMALL, "--config.epochs=1", "--config.data.train_examples=64"]


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    # Into files: a row that outlives its sweep would keep a pipe open.
    with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
        return subprocess.Popen(command("sweep", *arguments), cwd=ROOT, stdout=out, stderr=err)


def sweep(arguments: list[str], log: Path) -> tuple[int, str, str]:
    status = start(arguments, log).wait(timeout=300)
    out, err = log.with_suffix(".out").read_text(), log.with_suffix(".err").read_text()
    assert "Traceback" not in out + err
    return status, out, err


BAD_INPUT: list[tuple[list[str], str]] = [
    (
        [],
        "default.py has no ROWS, a tuple .*: use .*blockkd/cifar10.py, .*contsup/dgl.py, .*table1.py",
    ),
    (["--config=nothing.py"], "no config file 'nothing.py'"),
    ([f"--config={TABLE2}", "--sedes=1"], "Unknown command line flag 'sedes'. Did you mean: seeds"),
    ([f"--config={TABLE2}", "--config.epoch=1"], r"unknown config key 'epoch': the nearest are epochs, "),
    ([f"--config={TABLE2}", "--config.epochs=few"], "epochs is 'few': use a whole number from 1"),
    ([f"--config={TABLE2}", "--seeds=0,one"], "--seeds=0,one: use whole numbers from 0 to .*--seeds=0,1,2"),
    ([f"--config={TABLE2}", "--seeds=-1"], "--seeds=-1: use whole numbers from 0"),
    ([f"--config={TABLE2}", "--seeds=1", "--config.seed=1"], "--config.seed and --seeds both set the seed"),
    ([f"--config={TABLE2}", "--rows=k=3"], "--rows=k=3: no row of .* has this text; use .*\n  1 k=1\n"),
    ([f"--config={TABLE2}", "--rows="], "--rows=: no row"),
    ([f"--config={TABLE2}", "--rows=0"], "--rows=0: use numbers of rows of .*, 1 to 17"),
    ([f"--config={TABLE2}", "--rows=18"], "--rows=18: use numbers of rows of .*, 1 to 17"),
    ([f"--config={TABLE2}", "--verify=18"], "--verify=18: use numbers of rows of .*, 1 to 17"),
    ([f"--config={TABLE2}", "--verify=1", "--notime"], "--time has no effect with --verify: leave one out"),
    ([f"--config={TABLE2}", "--budget=steps", "--print_commands"], "--print_commands does not know the steps of a"),
    ([f"--config={TABLE2}", "--budget=time"], "unknown budget 'time': use steps, seconds or multiply-adds"),
    (
        [f"--config={TABLE2}", "--budget=steps", "--config.optimizer.schedule_steps=5"],
        "--config.optimizer.schedule_steps and --budget both set the schedule: leave one out",
    ),
    ([f"--config={TABLE2}", "--jobs=0"], "jobs.*0"),
    ([f"--config={TABLE2}", "--verify=1", "--jobs=2"], "--jobs has no effect with --verify: leave one out"),
    ([f"--config={TABLE2}", "--verify=1", "--rows=1"], "--rows and --verify both choose rows"),
    (
        [f"--config={TABLE2}", "--verify=1", "--config.data.name=digits"],
        "--verify: k=1 seed 0 is not done in .*train it",
    ),
    ([f"--config={TABLE2}:k=8"], "option 'k' of .*table2.py:k=8: its rows set this option"),
    ([f"--config={TABLE2}:depth=8"], "unknown option 'depth': use k, context or loss"),
    ([f"--config={TABLE2}", "table"], "unexpected argument 'table'"),
    ([f"--config={TABLE2}", "--workdir=/proc/nowhere"], "workdir '/proc/nowhere' cannot be used: .*another"),
]


def test_bad_input_is_refused_in_one_message():
    refused("sweep", BAD_INPUT)


def test_print_commands_prints_a_line_per_row_and_runs_nothing(tmp_path):
    arguments = [*TINY, "--rows=k=4", "--seeds=0,1", f"--workdir={tmp_path / 'sweep'}", "--print_commands"]
    status, out, err = sweep(arguments, tmp_path / "log")
    assert (status, err) == (0, "")
    lines = [shlex.split(line) for line in out.splitlines()]
    assert len(lines) == 8
    assert lines[0] == [
        "python", "-m", "experiments.train", f"--config={TABLE2}:k=4,context=E,loss=contrast", *TINY[1:],
        "--config.seed=0", f"--workdir={tmp_path}/sweep/k=4,context=E,loss=contrast-seed0",
    ]  # fmt: skip
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("arguments", [[f"--config={TABLE2}", "--print_commands"], ["--help"]])
def test_a_reader_may_stop_early(arguments):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command("sweep", *arguments), cwd=ROOT, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_sweep_writes_table_and_picture_reports_failures_and_skips_finished_runs(tmp_path):
    workdir = tmp_path / "sweep"
    # ResNet-8 has 5 blocks: no 16 modules.
    arguments = [*TINY, "--rows=1,5,2", f"--workdir={workdir}"]
    status, out, err = sweep(arguments, tmp_path / "first")
    assert status == 1
    message = "k=16,context=E,loss=contrast seed 0: 16 modules for a network of 5 blocks: use 1 to 5"
    assert err.endswith(f"error: 1 of 3 runs failed; the same command tries them again:\n  {message}\n")
    assert "run 1 of 3: k=1 seed 0\n" in out and "run 2 of 3: k=2,context=E,loss=contrast seed 0, about 0:0" in out
    states = [line.rsplit('"', 1)[-1].split(",")[1] for line in (workdir / "table.csv").read_text().splitlines()[2:]]
    assert states == ["done", "failed"]
    assert "| 1 | k=1 | done | 1 |" in (workdir / "table.md").read_text()
    assert (workdir / "error_over_modules.png").read_bytes().startswith(b"\x89PNG")
    before = (workdir / "k=1-seed0" / "summary.json").stat().st_mtime_ns

    status, out, err = sweep([*TINY, "--rows=1,2", f"--workdir={workdir}"], tmp_path / "second")
    assert (status, err) == (0, "")
    assert out.count("done already") == 2 and "epoch" not in out
    assert (workdir / "k=1-seed0" / "summary.json").stat().st_mtime_ns == before

    assert "timing the steps of 2 rows in turn" not in out  # they were timed at the first time
    with (workdir / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert all(float(line["step_seconds"]) > 0 for line in lines if line["state"] == "done")
    runs = [json.loads(line) for line in (workdir / "runs.jsonl").read_text().splitlines()]
    assert [(run["row"], run["seed"], len(run["starts"])) for run in runs] == [
        ("k=1", 0, 1), ("k=2,context=E,loss=contrast", 0, 1),
    ]  # fmt: skip
    assert runs[0]["starts"][0]["command"].startswith(f"python -m experiments.train --config={TABLE2}:k=1 ")

    status, out, err = sweep([*TINY, "--verify=1", f"--workdir={workdir}"], tmp_path / "verified")
    assert status == 0, err
    assert out.endswith("k=1 seed 0: the same records\n")

    status, out, err = sweep([*TINY, "--rows=1", "--config.epochs=2", f"--workdir={workdir}"], tmp_path / "third")
    assert (status, out) == (2, "")
    assert "holds a run of another config:\n  epochs: 1 there, 2 now\n" in err


LONG = [*SMALL, "--config.epochs=40", "--config.data.train_examples=192", "--rows=1,2"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_same_command_resumes_a_stopped_or_killed_sweep(tmp_path, number, jobs):
    workdir = tmp_path / "sweep"
    arguments = [*LONG, f"--jobs={jobs}", f"--workdir={workdir}"]
    process = start(arguments, tmp_path / "first")
    begun = [workdir / f"{row}-seed0" / "metrics.jsonl" for row in ("k=1", "k=2,context=E,loss=contrast")[:jobs]]
    wait_until(lambda: all(records.exists() and records.read_text() for records in begun), [process])
    process.send_signal(number)
    status = process.wait(timeout=240)
    err = (tmp_path / "first.err").read_text()
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        assert status == -number
    else:
        assert status == 128 + number
        assert err.endswith(
            f"error: interrupted by {number.name}; saved in {workdir}: the same command resumes from there\n"
        )
        assert "| not done | 0 |" in (workdir / "table.md").read_text()
    status, out, err = sweep(arguments, tmp_path / "second")
    assert status == 0, err
    # The row of a killed sweep may have ended before it was asked to stop.
    for run, records in enumerate(begun, start=1):
        resumed = read_starts(records.parent)[-1]["step"] > 0
        assert resumed or (number == signal.SIGKILL and f"run {run} of 2: {records.parent.name}".split("-")[0] in out)
    assert out.count("asked to save and stop") == (jobs if number == signal.SIGKILL else 0)
    assert (workdir / "table.md").read_text().count("| done | 1 |") == 2
