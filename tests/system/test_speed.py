"""The program that times training steps."""

import json

import pytest

from tests.support.processes import refused, succeed


def test_a_row_is_timed_once(tmp_path):
    """A second start with another row times the new row, in turn with the one that it is compared with."""
    setting = (f"--workdir={tmp_path}", "--methods=end_to_end", "--steps=2", "--rounds=2", "--config.batch_size=8")
    first = succeed("speed", *setting, "--forms=separate")
    second = succeed("speed", *setting, "--forms=separate,scanned", f"--profile={tmp_path / 'traces'}", "--slowest=1")
    rows = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [row["form"] for row in rows] == ["separate", "scanned"]
    for row in rows:
        assert 0 < row["least"] <= row["seconds"] <= row["most"] and row["rounds"] == 2
        assert 0 < row["host_seconds"] <= row["most"] and row["predicted_bytes"] > 0 and row["multiply_adds"] > 0
        assert row["cached_seconds"] > 0 and row["compile_seconds"] > 0 and row["device"] == "cpu"
        assert row["flops"] == pytest.approx(2 * row["multiply_adds"] / row["seconds"])
        assert row["of_end_to_end"] == 1
    (shares,) = (row["shares"] for row in rows if row["shares"])
    assert sum(shares.values()) == pytest.approx(1) and shares["convolutions"] > 0
    assert "% convolutions" in second and len(list((tmp_path / "traces").iterdir())) == 1
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "rows: 1, to time: 1" in first and "end_to_end separate float32: compiled in" in first
    assert "rows: 2, to time: 1" in second and "separate float32: compiled in" not in second


def test_bad_input_is_refused(tmp_path):
    folder = f"--workdir={tmp_path}"
    refused(
        "speed",
        [
            ([folder, "--modules=x"], "--modules=x: use whole numbers from 1 to 1000000, separated by commas"),
            ([folder, "--modules="], "--modules=: use whole numbers"),
            ([folder, "--forms=fast"], "form"),
            ([folder, "--forms="], "--forms is empty: leave it out"),
            ([folder, "--methods="], "--methods is empty: leave it out, or name some with commas between"),
            ([folder, "--contexts="], "--contexts is empty"),
            ([folder, "--steps=10000000000"], r"--steps=10000000000: use an integer in the range \[1, 100000\]"),
            ([folder, "--rounds=many"], r"--rounds=many: use an integer in the range \[1, 10000\]"),
            ([folder, "--seconds=nan"], "--seconds=nan: use a number from 0 to 1e7"),
            ([folder, "--profile=$KD_LOCAL_NOWHERE/x"], "the environment variable KD_LOCAL_NOWHERE is not set"),
            ([folder, "--profile="], "profile is ''"),
            ([folder, "--slowest=2"], "--slowest=2 is of the rows to trace: name a folder with --profile"),
            ([folder, "--config.epochs=3"], "--config.epochs: this program does not use it; use --steps"),
            ([folder, "--methods=kd"], "teacher"),
            ([folder, "--config.step=joined"], "step is joined, which the rows would ignore"),
            ([folder, "--config.mesh.data=2"], "mesh.data is 2"),
            ([folder, "--contexts=R0E"], "unknown context 'R0E'"),
        ],
    )
