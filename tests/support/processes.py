"""Starts programs, and returns their output and exit status."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kd_local.training.checkpoints import MANIFEST

ROOT = Path(__file__).parents[2]
_RUN_ALL = """
import contextlib, importlib, io, json, sys
from unittest import mock
from absl import flags
from absl.testing import flagsaver
name, before, commands = json.load(sys.stdin)
try:
    program = importlib.import_module(f"experiments.{name}.__main__")
except ModuleNotFoundError:  # a program of one file
    program = importlib.import_module(f"experiments.{name}")
exec(before)
for arguments in commands:
    argv, out, err, status = [name, *arguments], io.StringIO(), io.StringIO(), None
    with (
        mock.patch.object(sys, "argv", argv), flagsaver.flagsaver(),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
    ):
        flags.FLAGS.unparse_flags()
        try:
            program.main(program.parse(argv))
        except SystemExit as stopped:
            status = stopped.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def command(program: str, *arguments: object) -> list[str]:
    """The command line of a program in experiments/."""
    return [sys.executable, "-m", f"experiments.{program}", *map(str, arguments)]


def start(program: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(program, *arguments), cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def devices(count: int) -> str:
    """XLA_FLAGS with another number of CPU devices."""
    others = re.sub(r"\S*device_count=\d+", "", os.environ["XLA_FLAGS"])
    return f"{others} --xla_force_host_platform_device_count={count}"


def start_two(program: str, *arguments: object, devices_of_each: int = 1) -> list[subprocess.Popen[str]]:
    """The two processes of a distributed run on this machine."""
    shared = [*arguments, "--distributed", f"--coordinator=localhost:{free_port()}", "--processes=2"]
    return [start(program, *shared, f"--index={index}", XLA_FLAGS=devices(devices_of_each)) for index in (0, 1)]


def start_file(file: str, *arguments: object, devices_of_each: int, **environment: str) -> subprocess.Popen[str]:
    """A test file that is a program too, whose executables are optimised a little."""
    flags = f"--xla_force_host_platform_device_count={devices_of_each} --xla_backend_optimization_level=1"
    return subprocess.Popen(
        [sys.executable, file, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def say(*values: object) -> None:
    """Prints values for `said_values` in the process that reads the output."""
    print("said", json.dumps(values), flush=True)


def said_values(out: str) -> list[list]:
    """The values of each `say`. Libraries write to standard output too."""
    return [json.loads(line[5:]) for line in out.splitlines() if line.startswith("said ")]


def finish_all(processes: Sequence[subprocess.Popen[str]], seconds: float = 400) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each. Processes that do not end within the time are killed."""
    try:
        ends = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *end) for process, end in zip(processes, ends, strict=True)]


def finish(process: subprocess.Popen[str], seconds: float = 400) -> tuple[int, str, str]:
    """Exit status, output and errors of a program that ends without a traceback."""
    ((status, out, err),) = finish_all([process], seconds)
    assert "Traceback" not in err, err
    return status, out, err


def run(program: str, *arguments: object, **environment: str) -> tuple[int, str, str]:
    return finish(start(program, *arguments, **environment))


def succeed(program: str, *arguments: object, **environment: str) -> str:
    """The output of a program that must succeed."""
    status, out, err = run(program, *arguments, **environment)
    assert status == 0, err
    return out


def wait_until(
    condition: Callable[[], object], processes: Sequence[subprocess.Popen[str]] = (), seconds: float = 300
) -> None:
    """Waits until running processes fulfil a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def newest_checkpoint(workdir: Path) -> int:
    """The step of the newest complete checkpoint of a run; 0 if there is none."""
    steps = [path.parent.name for path in (workdir / "checkpoints").glob(f"*/{MANIFEST}")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def run_all(program: str, commands: Sequence[Sequence[str]], before: str = "") -> list[tuple[int | None, str, str]]:
    """Status, output and errors of commands of one program that end early, all run in one process."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL], input=json.dumps([program, before, commands]), cwd=ROOT,
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def refused(program: str, commands: Sequence[tuple[Sequence[str], str]], before: str = "") -> None:
    """Asserts that each command ends with status 2 and one message on standard error, which the pattern matches."""
    results = run_all(program, [arguments for arguments, _ in commands], before)
    for (arguments, message), (status, out, err) in zip(commands, results, strict=True):
        assert (status, out) == (2, ""), (arguments, out, err)
        assert err.startswith("error: ") and err.count("error:") == 1, (arguments, err)
        assert re.search(message, err, re.DOTALL), (arguments, err)
