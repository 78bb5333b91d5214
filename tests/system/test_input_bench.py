"""The program that measures the input: its report, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("grain")

ROOT = Path(__file__).parents[2]


def _run(*arguments: str, temporary: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.input_bench", *arguments]
    env = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_reports_a_table_and_a_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = _run("--images=20", "--workers=0,1", "--size=64", "--batch=4", temporary=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *table, line = done.stdout.splitlines()
    assert any("images / s and core" in row for row in table)
    record = json.loads(line)
    assert (record["size"], record["batch"]) == (64, 4)
    assert [speed["workers"] for speed in record["speeds"]] == [0, 1]
    for speed in record["speeds"]:
        assert (speed["images"], speed["rounds"]) == (20, 5)
        assert speed["images_per_second"] > 0 and speed["images_per_core_second"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--workers=two", "error: --workers=two: use whole numbers with commas between"),
        ("--images=0", "error: --images=0: use 1 or more"),
        ("--size=large", "error: flag --size=large"),
        ("more", "error: unexpected argument 'more': everything is given by flags"),
    ],
)
def test_refuses(argument: str, text: str, tmp_path: Path) -> None:
    done = _run(argument, temporary=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith(text)
