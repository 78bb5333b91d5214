"""The memory program."""

import csv
import os
import re
import signal
from pathlib import Path

import pytest

from experiments.configs import default
from experiments.folders.folder_lock import FolderLock
from experiments.memory.observed import ObservationError, observe
from experiments.memory.rows import Row
from kd_local.files import read_json_lines
from kd_local.memory import gpus
from tests.support.processes import finish, refused, run, start, wait_until

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
    (["--target=gpu"], "unknown target 'gpu': use local, .* or gpu:a100"),
    (["--target=tpu:v5e"], "target 'tpu:v5e' needs XLA's TPU compiler, the package libtpu: pip install"),
    (["--target=gpu:h100"], "target 'gpu:h100' needs XLA's GPU compiler, JAX's CUDA plugin .*: pip install"),
    (["--modules=0"], "--modules=0: use whole numbers from 1"),
    (["--modules=99"], "99 modules for a network of 5 blocks: use 1 to 5"),
    (
        ["--modules=x"],
        "--modules=x: use whole numbers from 1 to 1000000, separated by commas, such as --modules=1,2,4,8,16",
    ),
    (["--modules="], "--modules=: use whole numbers"),
    (["--modules=1", "--contexts=R-1"], "unknown context 'R-1': use R0, E, R1, R1E, or Rn / RnE with n >= 1"),
    (["--modules=1", "--devices=0"], "--devices=0: use a positive integer"),
    (["--modules=1", "--devices=3"], "a batch of 64 cannot be divided among 3 devices: use another --devices"),
    (["--modules=1", "--config.network.name=resnet9"], r"unknown network 'resnet9': the nearest of [0-9]+ are resnet"),
    (["--modules=1", "--config.method=sumed"], "unknown method 'sumed'"),
    (["--modules=1", "--config.local.context=r0"], "unknown context 'r0'"),
    (["--modules=3", "--config.local.modules=2", "--config.local.boundaries=stage1/0"], "3 modules, but 1 boundaries"),
    (["--modules=1", "--devices=two"], "--devices=two: use a positive integer"),
    (["--modules=1", "--distillation=kd"], "no teacher for kd: name its network, such as --config.teacher.network"),
    (
        ["--modules=1", "--distillation=kdd", TEACHER],
        "unknown distillation method 'kdd': the nearest of [0-9]+ are kd, ",
    ),
    (
        ["--modules=1", "--config.teacher.network=resnet9"],
        r"unknown network 'resnet9': the nearest of [0-9]+ are resnet",
    ),
    (
        ["--modules=1", "--config.method=kd"],
        "--config.method: this program does not use it; the table has",
    ),
    (["--modules=2", "--auxiliaries=teacher", "--config.teacher.network=resnet8,resnet14"], "2 teachers for local"),
    (["--modules=1", "--workdir=/proc/nowhere"], "workdir '/proc/nowhere' cannot be used: .*; use another --workdir"),
]
NO_COMPILER = """
from kd_local.memory import gpus, targets
targets.find_spec = lambda name: None
gpus._installed = lambda name: False
"""


def lines(workdir: Path) -> list[dict]:
    return read_json_lines(workdir / "memory.jsonl", dict)


def measured(workdir: Path) -> int:
    return len((workdir / "measured.jsonl").read_text().splitlines())


@pytest.mark.exhaustive
def test_the_same_command_resumes_a_stopped_table(tmp_path):
    workdir = tmp_path / "table"
    arguments = [*SMALL, "--modules=3,1", "--nomeasure"]
    process = start("memory", f"--workdir={workdir}", *arguments)
    wait_until(lambda: (workdir / "memory.jsonl").exists() and len(lines(workdir)) >= 2, [process])
    process.kill()
    process.communicate()
    before = lines(workdir)
    compiled = len((workdir / "executables.jsonl").read_text().splitlines())
    assert 2 <= len(before) < 10

    process = start("memory", f"--workdir={workdir}", *arguments)
    for line in process.stdout:
        if line.startswith("row 1 of 10: end_to_end, "):
            break
    assert lines(workdir)[: len(before)] == before  # nothing was lost by starting again
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert err == f"error: interrupted by SIGINT; saved in {workdir}: the same command resumes from there\n"

    status, out, _ = run("memory", f"--workdir={workdir}", *arguments)
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

    status, out, _ = run("memory", f"--workdir={workdir}", *arguments)
    assert status == 0
    assert "nothing compiled: all executables were known" in out
    assert lines(workdir) == records

    status, _, err = run("memory", f"--workdir={workdir}", *arguments, "--config.network.shortcut=padding")
    assert status == 2
    assert 'network.shortcut: "projection" there, "padding" now' in err


@pytest.mark.exhaustive
def test_tables_with_and_without_distillation(tmp_path):
    arguments = [f"--workdir={tmp_path}", *SMALL, "--modules=1", TEACHER]
    status, out, err = run("memory", *arguments)
    assert status == 0, err
    assert "8 rows: resnet8 on digits, taught by resnet14, batch 8, local, workdir" in out
    assert out.index("row 3 of 8: kd, ") < out.index("row 4 of 8: block_kd, ")
    assert "measured" in out and "to kd" in out
    whole, *local, kd, block_kd = records = lines(tmp_path)
    # A single module is end to end; its rows are all one step, measured once.
    kinds = [one["method"] for one in (whole, *local)]
    assert kinds == ["end_to_end", "end_to_end_remat", "naive", "contsup_joined", "contsup", "contsup_remat"]
    assert measured(tmp_path) == 7
    assert all(one["measured_bytes"] > one["state_bytes"] for one in records)
    taught = (kd, block_kd)
    assert [(one["method"], one["context"], one["modules"]) for one in taught] == [
        ("kd", None, 1), ("block_kd", None, 1),
    ]  # fmt: skip
    assert kd["boundaries"] == []
    for one in taught:
        assert one["ratio"] == round(one["peak_bytes"] / whole["peak_bytes"], 4)
        assert one["kd_ratio"] == round(one["peak_bytes"] / kd["peak_bytes"], 4)
        assert one["state_bytes"] > whole["state_bytes"]
        assert one["floor_bytes"] < one["peak_bytes"]
    assert kd["kd_ratio"] == 1 < block_kd["kd_ratio"]

    status, out, _ = run("memory", *arguments, "--distillation=block_kd")
    assert (status, "7 rows: " in out, "nothing compiled" in out) == (0, True, True)
    assert lines(tmp_path) == [{**one, "kd_ratio": None} for one in [*records[:6], block_kd]]
    assert measured(tmp_path) == 7


@pytest.mark.skipif(not any(map(gpus._installed, gpus._PLUGINS)), reason="JAX's CUDA plugin is not installed")
def test_a_gpu_that_is_absent(tmp_path):
    arguments = ["--target=gpu:h100", "--modules=1,2", *SMALL, f"--workdir={tmp_path}"]
    status, out, err = run("memory", *arguments)
    assert status == 0, err
    assert "gpu:h100" in out
    rows = lines(tmp_path)
    assert all(one["floor_bytes"] < one["peak_bytes"] < 2**28 and one["measured_bytes"] is None for one in rows)


def test_a_folder_in_use_is_refused(tmp_path):
    workdir = tmp_path / "table"
    workdir.mkdir()
    with FolderLock(workdir):
        status, out, err = run("memory", f"--workdir={workdir}", *SMALL, "--modules=1", "--nomeasure")
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"error: workdir '{workdir}' is in use by process {os.getpid()} on .*another --workdir\n", err)
    assert not (workdir / "memory.jsonl").exists()


def test_the_reason_is_shown_for_a_row_that_cannot_be_measured():
    environment = {**os.environ, "JAX_PLATFORMS": "nonsense"}
    with pytest.raises(ObservationError, match="nonsense"):
        observe(Row("end_to_end"), default.get_config(), devices=1, environment=environment)


def test_bad_input_is_refused(tmp_path):
    workdir = tmp_path / "table"
    # The last value of a flag that is given twice counts.
    refused(
        "memory", [([f"--workdir={workdir}", *arguments], message) for arguments, message in BAD_INPUT], NO_COMPILER
    )
    assert not workdir.exists()
