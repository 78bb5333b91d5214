"""The program that times modules on devices of their own."""

import json

import pytest

from tests.support.processes import refused, succeed

LINES, PICTURE = "pipeline.jsonl", "timeline.png"

SETTING = ("--config.batch_size=16", "--steps=3", "--rounds=1", "--module=2", "--data=2")


@pytest.mark.exhaustive
def test_modules_over_devices_are_measured(tmp_path):
    succeed("pipeline", f"--workdir={tmp_path}", *SETTING)
    rows = [json.loads(line) for line in (tmp_path / LINES).read_text().splitlines()]
    assert [(row["module"], row["data"]) for row in rows] == [(1, 1), (2, 1), (1, 2)]
    one, modules, data = rows
    assert one["speed"] == 1 and all(row["images_per_second"] > 0 for row in rows)
    assert sorted(set(modules["placement"])) == [0, 1] and len(modules["placement"]) == 4
    assert len(modules["busy"]) == 2 and all(0 < share <= 1 for share in modules["busy"])
    # To the first group the batch as it comes; to the second also what the modules before it hand on.
    image, label = 16 * 8 * 8 * 4, 16 * 4
    assert modules["transfer_bytes"][0] == image + label < modules["transfer_bytes"][1]
    # Each group has less to hold than the one device that has all, and so has each half of a batch.
    assert max(modules["device_bytes"]) < one["device_bytes"][0]
    assert data["device_bytes"][0] < one["device_bytes"][0]
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_refused(tmp_path):
    message = "--module=2,x: use whole numbers from 1 to 1000000, separated by commas, such as --module=2,4"
    refused("pipeline", [([f"--workdir={tmp_path}", "--module=2,x"], message)])
