"""Programs that tests start."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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


def run_all(program: str, commands: Sequence[Sequence[str]], before: str = "") -> list[tuple[int | None, str, str]]:
    """Status, output and errors of commands of one program that end early, all run in one process."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL], input=json.dumps([program, before, commands]), cwd=ROOT,
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]
