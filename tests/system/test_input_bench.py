"""The program `input_bench`: its report, and bad input."""

import json
from pathlib import Path

import pytest

from tests.support.processes import refused, run

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("grain")


def test_the_program_prints_a_table_and_a_line_and_leaves_no_files(tmp_path: Path) -> None:
    arguments = ("--images=20", "--workers=0,1", "--size=64", "--batch=4")
    status, out, err = run("input_bench", *arguments, TMPDIR=str(tmp_path))
    assert (status, err) == (0, "")
    *table, line = out.splitlines()
    assert any("images / s and core" in row for row in table)
    record = json.loads(line)
    assert (record["size"], record["batch"]) == (64, 4)
    assert [speed["workers"] for speed in record["speeds"]] == [0, 1]
    for speed in record["speeds"]:
        assert (speed["images"], speed["rounds"]) == (20, 5)
        assert speed["images_per_second"] > 0 and speed["images_per_core_second"] > 0
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused() -> None:
    commands = [
        (["--workers=two"], "error: --workers=two: use whole numbers from 0 to 1024, separated by commas"),
        (["--images=0"], "error: --images is 0: use a whole number from 1"),
        (["--size=large"], "error: --size=large: use an integer"),
        (["more"], "error: unexpected argument 'more': use flags"),
    ]
    refused("input_bench", commands)
