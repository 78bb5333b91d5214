"""The program that times training steps."""

import json

from tests.support.processes import refused, succeed


def test_steps_are_timed(tmp_path):
    setting = ("--methods=end_to_end", "--forms=separate,scanned", "--steps=2", "--rounds=2", "--config.batch_size=8")
    said = succeed("speed", f"--workdir={tmp_path}", *setting)
    rows = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [row["form"] for row in rows] == ["separate", "scanned"]
    for row in rows:
        assert 0 < row["least"] <= row["seconds"] <= row["most"] and row["rounds"] == 2
        assert 0 < row["host_seconds"] <= row["most"] and row["predicted_bytes"] > 0 and row["multiply_adds"] > 0
    assert "end_to_end scanned float32: compiled in" in str(said)


def test_bad_input_is_refused(tmp_path):
    folder = f"--workdir={tmp_path}"
    refused(
        "speed",
        [
            ([folder, "--modules=x"], "--modules=x: use whole numbers from 1 to 1000000, separated by commas"),
            ([folder, "--forms=fast"], "form"),
            ([folder, "--methods=kd"], "teacher"),
            ([folder, "--config.step=joined"], "step is joined, which the rows would ignore"),
            ([folder, "--config.mesh.data=2"], "mesh.data is 2"),
            ([folder, "--contexts=R0E"], "unknown context 'R0E'"),
        ],
    )
