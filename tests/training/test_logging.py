import json

import matplotlib.image
import numpy as np

from kd_local.files import read_json_lines
from kd_local.training.logging import Log
from kd_local.training.loop import Course
from kd_local.training.plots import plot_curves


def record(step):
    return {
        "epoch": step / 4,
        "step": step,
        "train/module00/loss": 2.0 / step,
        "train/module01/loss": 1.0 / step,
        "train/module01/accuracy": 0.5,
        "test/accuracy": 0.25,
    }


def test_records_after_the_step_gone_on_from_come_again(tmp_path):
    log = Log(tmp_path)
    log.on_start(Course(0, 12, 4, 8))
    for step in (4, 8):
        log.on_epoch(record(step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')  # killed in the middle of a line
    assert read_json_lines(tmp_path / "metrics.jsonl") == [record(4), record(8)]
    log = Log(tmp_path)
    log.on_start(Course(6, 12, 4, 8))
    for step in (8, 12):
        log.on_epoch(record(step))
    for step in range(1, 61):
        log.on_step(step, {"module00/loss": 1.0})
    log.close()
    assert [entry["step"] for entry in read_json_lines(tmp_path / "steps.jsonl")] == [1, 25, 50]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(4), record(8), record(12)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_curves_are_drawn_one_panel_a_module(tmp_path):
    path = tmp_path / "curves.png"
    batches = [{"step": i, "batch/module00/loss": 1.0, "batch/module01/loss": 2.0} for i in (1, 25)]
    plot_curves([record(4), record(8)], batches, path, title="a run")
    picture = matplotlib.image.imread(path)
    assert picture.ndim == 3 and np.unique(picture.reshape(-1, 4), axis=0).shape[0] > 10
    empty = tmp_path / "one.png"
    plot_curves([record(4)], [], empty, title="one epoch")
    assert empty.stat().st_size > 1000
