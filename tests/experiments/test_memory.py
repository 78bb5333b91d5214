"""The memory table, as a user makes it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.configs import default
from experiments.folders.folder_lock import FolderLock
from experiments.memory import measurements as memory_measurements
from experiments.memory.observed import ObservationError, observe
from experiments.memory.rows import Row, describe, distillation_rows, in_order_of_effort, rows_of
from experiments.memory.table import MIB, Record, draw
from kd_local.files import read_json_lines
from kd_local.memory import target
from kd_local.parallel import StepOptions
from tests.support.processes import run_all

ROOT = Path(__file__).parents[2]
KEYS = [
    "method", "context", "modules", "boundaries", "target", "batch", "peak_bytes", "state_bytes", "carried_bytes",
    "temp_bytes", "floor_bytes", "ratio", "kd_ratio", "flops", "flops_ratio", "executables", "compile_seconds",
    "saved_bytes", "saved_ratio", "measured_bytes", "largest",
]  # fmt: skip
TEACHER = "--config.teacher.network=resnet14"
SMALL = ["--config.batch_size=8", "--contexts=R0", "--nodecoders"]

BAD_INPUT: list[tuple[list[str], str]] = [
    (["--target=tpu:v7"], r"unknown target 'tpu:v7': use local, tpu:v5e, .* \(nearest: tpu:v"),
    (["--target=lokal"], r"unknown target 'lokal': use local, .* \(nearest: local\)"),
    (["--target=gpu"], "there is no GPU here, .* or use target tpu:v5e"),
    (["--target=tpu:v5e"], "target 'tpu:v5e' needs XLA's TPU compiler, the package libtpu: pip install"),
    (["--modules=0"], "0 modules for a network of 5 blocks: use 1 to 5"),
    (["--modules=99"], "99 modules for a network of 5 blocks: use 1 to 5"),
    (["--modules=x"], "--modules=x: use whole numbers separated by commas, such as --modules=1,2,4,8,16"),
    (["--modules="], "--modules=: use whole numbers"),
    (["--modules=1", "--contexts=R-1"], "unknown context 'R-1': use R0, E, R1, R1E, or Rn / RnE with n >= 1"),
    (["--modules=1", "--devices=0"], "a mesh of 0 devices"),
    (["--modules=1", "--devices=3"], "a batch of 64 cannot be divided among 3 devices: use another --devices"),
    (["--modules=1", "--config.network.name=resnet9"], r"unknown network 'resnet9': use .* \(nearest: resnet"),
    (["--modules=1", "--config.method=sumed"], "unknown method 'sumed'"),
    (["--modules=1", "--config.local.context=r0"], "unknown context 'r0'"),
    (["--modules=3", "--config.local.modules=2", "--config.local.boundaries=stage1/0"], "3 modules, but 1 boundaries"),
    (["--modules=1", "--devices=two"], "flag --devices=two: invalid literal for int"),
    (["--modules=1", "--distillation=kd"], "no teacher for kd: name one, such as --config.teacher.network=resnet56, "),
    (["--modules=1", "--distillation=kdd", TEACHER], r"unknown distillation method 'kdd': use kd, .*\(nearest: kd\)"),
    (["--modules=1", "--config.teacher.network=resnet9"], r"unknown network 'resnet9': use .* \(nearest: resnet"),
    (["--modules=1", "--config.method=kd"], "teacher.weights is not set: method 'kd' needs a trained teacher"),
    (["--modules=1", "--config.teacher.network=resnet8,resnet14"], "2 teachers for local_distillation: give one"),
    (["--modules=1", "--workdir=/proc/nowhere"], "workdir '/proc/nowhere' cannot be used: .*; use another --workdir"),
]
NO_LIBTPU = "from kd_local.memory import targets; targets.find_spec = lambda name: None"


def start(workdir: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.memory", f"--workdir={workdir}", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "memory.jsonl").read_text().splitlines()]


def wait_for_rows(count: int, workdir: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not (workdir / "memory.jsonl").exists() or len(lines(workdir)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.exhaustive
def test_stopped_and_gone_on(tmp_path):
    workdir = tmp_path / "table"
    arguments = [*SMALL, "--modules=3,1", "--nomeasure"]
    process = start(workdir, *arguments)
    wait_for_rows(2, workdir, process)
    process.kill()
    process.communicate()
    before = lines(workdir)
    compiled = len((workdir / "executables.jsonl").read_text().splitlines())
    assert 2 <= len(before) < 10

    process = start(workdir, *arguments)
    for line in process.stdout:
        if line.startswith("row 1 of 10: end_to_end, "):
            break
    assert lines(workdir)[: len(before)] == before  # nothing was lost by starting again
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert err == f"error: interrupted; saved in {workdir}: the same command resumes from there\n"

    status, out, _ = finish(start(workdir, *arguments))
    assert status == 0
    new = len((workdir / "executables.jsonl").read_text().splitlines()) - compiled
    again = re.search(r"(\d+) executables compiled", out)
    assert again is not None and 1 <= int(again[1]) <= new
    records = lines(workdir)
    assert [(one["method"], one["modules"]) for one in records] == [
        ("end_to_end", 1), ("end_to_end_remat", 1), ("naive", 1), ("naive", 3),
        ("contsup_joined", 1), ("contsup_joined", 3), ("contsup", 1), ("contsup", 3),
        ("contsup_remat", 1), ("contsup_remat", 3),
    ]  # fmt: skip
    assert all(list(one) == KEYS for one in records)
    whole, cut = records[0], records[7]
    assert (whole["context"], whole["boundaries"], whole["ratio"]) == (None, [], 1.0)
    assert (cut["context"], cut["boundaries"], cut["executables"]) == ("R0", ["stage1/0", "stage2/0"], 3)
    assert cut["ratio"] == round(cut["peak_bytes"] / whole["peak_bytes"], 4)
    assert cut["saved_ratio"] < 1 < cut["flops_ratio"]
    assert all(one["state_bytes"] < one["floor_bytes"] < one["peak_bytes"] for one in records)
    assert records[3]["floor_bytes"] == records[5]["floor_bytes"] == cut["floor_bytes"]  # of the cut, not of the form
    assert all(one["kd_ratio"] is None for one in records)
    assert all((one["target"], one["batch"], one["measured_bytes"]) == ("local", 8, None) for one in records)
    with (workdir / "memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["peak_bytes"]) for row in rows] == [one["peak_bytes"] for one in records]
    assert rows[7]["boundaries"] == "stage1/0 stage2/0"
    assert (workdir / "memory.png").read_bytes().startswith(b"\x89PNG")

    status, out, _ = finish(start(workdir, *arguments))
    assert status == 0
    assert "nothing compiled: all executables were known" in out
    assert lines(workdir) == records

    status, _, err = finish(start(workdir, *arguments, "--config.network.shortcut=padding"))
    assert status == 2
    assert 'network.shortcut: "projection" there, "padding" now' in err


@pytest.mark.exhaustive
def test_measured(tmp_path):
    arguments = [*SMALL, "--modules=1"]
    status, out, err = finish(start(tmp_path, *arguments))
    assert status == 0, err
    assert "measured" in out
    records = lines(tmp_path)
    # A single module is end to end; its rows are all one step, measured once.
    kinds = [one["method"] for one in records]
    assert kinds == ["end_to_end", "end_to_end_remat", "naive", "contsup_joined", "contsup", "contsup_remat"]
    assert len((tmp_path / "measured.jsonl").read_text().splitlines()) == 5
    assert all(one["measured_bytes"] > one["state_bytes"] for one in records)
    status, out, _ = finish(start(tmp_path, *arguments))
    assert status == 0
    assert "nothing compiled" in out
    assert lines(tmp_path) == records
    assert len((tmp_path / "measured.jsonl").read_text().splitlines()) == 5


@pytest.mark.exhaustive
def test_distillation(tmp_path):
    status, out, err = finish(start(tmp_path, *SMALL, "--modules=1", TEACHER))
    assert status == 0, err
    assert "9 rows: resnet8 on digits, taught by resnet14, batch 8, local, workdir" in out
    assert out.index("row 3 of 9: kd, ") < out.index("row 4 of 9: block_kd, ")
    whole, *_, kd, block_kd, local = lines(tmp_path)
    assert [(one["method"], one["context"], one["modules"]) for one in (kd, block_kd, local)] == [
        ("kd", None, 1), ("block_kd", None, 1), ("local_distillation", None, 3),
    ]  # fmt: skip
    assert (kd["boundaries"], local["boundaries"]) == ([], ["stage1/0", "stage2/0"])
    assert local["executables"] == 4  # the teacher's answer is one
    for one in (kd, block_kd, local):
        assert one["ratio"] == round(one["peak_bytes"] / whole["peak_bytes"], 4)
        assert one["kd_ratio"] == round(one["peak_bytes"] / kd["peak_bytes"], 4)
        assert one["measured_bytes"] > one["state_bytes"] > whole["state_bytes"]
        assert one["floor_bytes"] < one["peak_bytes"]
    assert kd["kd_ratio"] == 1 < block_kd["kd_ratio"]
    assert "to kd" in out
    status, out, _ = finish(start(tmp_path, *SMALL, "--modules=1", TEACHER, "--distillation="))
    assert (status, "6 rows: " in out, "nothing compiled" in out) == (0, True, True)


def test_two_at_once_in_a_folder(tmp_path):
    workdir = tmp_path / "table"
    workdir.mkdir()
    with FolderLock(workdir, report=print, stopped=lambda: False):
        status, out, err = finish(start(workdir, *SMALL, "--modules=1", "--nomeasure"))
    assert (status, out) == (2, "")
    assert re.fullmatch(
        rf"error: workdir '{workdir}' is in use already, process {os.getpid()} on .*another --workdir\n", err
    )
    assert not (workdir / "memory.jsonl").exists()


def test_a_row_that_cannot_be_measured_says_why():
    environment = {**os.environ, "JAX_PLATFORMS": "nonsense"}
    with pytest.raises(ObservationError, match="nonsense"):
        observe(Row("end_to_end"), default.get_config(), devices=1, environment=environment)


def test_refused(tmp_path):
    workdir = tmp_path / "table"
    # Of one flag given twice the latter counts.
    commands = [[f"--workdir={workdir}", *arguments] for arguments, _ in BAD_INPUT]
    results = run_all("memory", commands, NO_LIBTPU)
    for (arguments, message), (status, out, err) in zip(BAD_INPUT, results, strict=True):
        assert status == 2, (arguments, out, err)
        assert "Traceback" not in out + err
        assert err.startswith("error: ") and err.count("error:") == 1
        assert re.search(message, err, re.DOTALL), (arguments, err)
    assert not workdir.exists()


def test_rows_in_order():
    rows = rows_of((1, 4), ("R0", "E"), decoders=True)
    assert list(map(str, rows)) == [
        "end_to_end", "end_to_end_remat", "naive R0 K=1", "naive R0 K=4", "contsup_joined R0 K=1",
        "contsup_joined R0 K=4", "contsup R0 K=1", "contsup R0 K=4", "contsup E K=1", "contsup E K=4",
        "contsup_remat R0 K=1", "contsup_remat R0 K=4", "contsup_remat E K=1", "contsup_remat E K=4",
        "contsup_decoder R0 K=1", "contsup_decoder R0 K=4", "contsup_decoder E K=1", "contsup_decoder E K=4",
    ]  # fmt: skip
    order = in_order_of_effort(rows)
    assert sorted(map(str, order)) == sorted(map(str, rows))
    assert order[0] == Row("end_to_end")
    local = [row.modules for row in order if row.method == "contsup"]
    assert local == [4, 4, 1, 1]
    assert {row.method for row in order[-4:]} == {"naive", "contsup_joined"}
    assert rows_of((4,), ("R0",), decoders=False)[-1] == Row("contsup_remat", 4, "R0")


def test_rows_of_distillation():
    config = default.get_config()
    config.teacher.network = "resnet14"
    rows = distillation_rows(("local_distillation", "fitnet", "kd"), config)
    assert list(map(str, rows)) == ["kd", "fitnet", "local_distillation K=3"]
    order = in_order_of_effort([*rows_of((1,), ("R0",), decoders=False), *rows[::-1]])
    assert list(map(str, order[:5])) == ["end_to_end", "end_to_end_remat", "kd", "fitnet", "local_distillation K=3"]
    config.local_distillation.stones = "2"
    described = describe(distillation_rows(("local_distillation",), config)[0], config)
    assert described.boundaries == ("stage2/0",)
    assert described.blocks == {"module00": ("stem", "stage1/0", "stage2/0"), "module01": ("stage3/0", "head")}
    assert distillation_rows((), default.get_config()) == []
    assert describe(Row("kd"), config).blocks == {"student": described.network.names}


def test_rows_differ_in_what_they_say_only():
    config = default.get_config()
    config.local.head = "0c1f"
    again = {m.remat for m in describe(Row("contsup_remat", 3, "E"), config).method.cut_network.modules}
    assert again == {("blocks", "contexts")}
    assert {m.remat for m in describe(Row("contsup", 3, "E"), config).method.cut_network.modules} == {("contexts",)}
    method = describe(Row("contsup_decoder", 3, "E"), config).method
    assert [module.reconstruction is not None for module in method.cut_network.modules] == [True, True, False]
    assert "images" in method.cut_network.modules[1].reads
    assert describe(Row("end_to_end_remat"), config).method.remat
    assert not describe(Row("end_to_end"), config).method.remat
    config.local.boundaries = "stem,stage1/0,stage2/0"
    assert describe(Row("naive", 4, "R0"), config).boundaries == ("stem", "stage1/0", "stage2/0")
    assert describe(Row("end_to_end"), config).boundaries == ()
    assert (config.local.modules, config.local.context, config.local.decoder) == (4, "R1E", False)  # as it was
    assert Row("contsup", 1, "R0").identity(config) == Row("contsup_decoder", 1, "E").identity(config)
    assert Row("contsup", 3, "R0").identity(config) != Row("contsup_joined", 3, "R0").identity(config)


def test_picture():
    def record(method, modules, context, peak):
        return Record(
            method, context, modules, (), "local", 8, peak * MIB, 0, 0, 0, 0, 1.0, None, 1, 1.0, 1, 0.0, 1, 1.0, None,
            "network",
        )  # fmt: skip

    records = [record("end_to_end", 1, None, 80), record("end_to_end_remat", 1, None, 40)]
    records += [record("contsup", k, context, 64 // k) for context in ("R0", "E") for k in (4, 2)]
    records += [record("naive", k, "R0", 90) for k in (2, 4)]
    records += [record("kd", 1, None, 85), record("local_distillation", 3, None, 50)]
    (axes,) = draw(records, title="resnet8").axes
    named = {line.get_label(): line for line in axes.get_lines()}
    assert set(named) == {
        "end_to_end", "end_to_end_remat", "contsup R0", "contsup E", "naive R0", "kd", "local_distillation"
    }  # fmt: skip
    assert set(named["kd"].get_ydata()) == {85}
    assert (list(named["local_distillation"].get_xdata()), axes.get_xticks().tolist()) == ([3], [2, 3, 4])
    colors = [named[name].get_color() for name in ("contsup R0", "contsup E", "kd", "local_distillation")]
    assert len(set(colors)) == 4
    assert list(named["contsup E"].get_xdata()) == [2, 4]
    assert list(named["contsup E"].get_ydata()) == [32, 16]
    assert named["contsup R0"].get_color() != named["contsup E"].get_color()
    assert set(named["end_to_end"].get_ydata()) == {80}


@pytest.mark.parametrize(("key", "value"), [("shard", "state"), ("batch_norm", "device")])
def test_options_of_the_step_change_the_measurement(key, value, tmp_path):
    """On two devices: a divided state is smaller, and without communication another executable is measured."""
    found = []
    for i, options in enumerate(({}, {key: value})):
        base, folder = default.get_config(), tmp_path / str(i)
        base.mesh.update(options)
        folder.mkdir()
        measurements = memory_measurements.Measurements(base, target("local", devices=2), 2, folder, measure=False)
        values = measurements.of(Row("end_to_end")).values
        digests = {line["digest"] for line in read_json_lines(folder / memory_measurements.EXECUTABLES)}
        found.append((values["state_bytes"], digests))
    (whole, usual), (divided, other) = found
    assert not usual & other
    assert divided < 0.7 * whole if key == "shard" else divided == whole


def test_the_form_of_the_step_is_the_rows():
    base = default.get_config()
    base.mesh.shard = "state"
    assert describe(Row("contsup_joined", 2, "R0"), base).options == StepOptions(form="joined", shard="state")
    base.step = "joined"
    assert describe(Row("contsup", 2, "R0"), base).options == StepOptions(shard="state")


def test_the_process_of_real_steps_takes_memory_as_training_does(monkeypatch, tmp_path):
    seen = []

    def observed(*_, environment, **__):
        seen.append(environment["XLA_PYTHON_CLIENT_PREALLOCATE"])

    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as the program sets it for itself
    monkeypatch.setattr(memory_measurements, "observe", observed)
    measurements = memory_measurements.Measurements(default.get_config(), target("local"), 1, tmp_path, measure=True)
    measurements.of(Row("end_to_end"))
    assert seen == ["true"]
