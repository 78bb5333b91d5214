"""What tests of the programs share."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_RUN_ALL = """
import contextlib, importlib, io, json, sys
from unittest import mock
from absl import flags
from absl.testing import flagsaver
name, before, commands = json.load(sys.stdin)
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


@pytest.fixture(scope="session")
def run_all() -> Callable[..., list[tuple[int | None, str, str]]]:
    """Commands of one program that end early, all in one process, each with its status, output and errors."""

    def run(program: str, commands: Sequence[Sequence[str]], before: str = "") -> list[tuple[int | None, str, str]]:
        done = subprocess.run(
            [sys.executable, "-c", _RUN_ALL], input=json.dumps([program, before, commands]), cwd=ROOT,
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    return run
