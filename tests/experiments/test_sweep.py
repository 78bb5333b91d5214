"""Sweeps: the rows of every table, the table and the picture made of their runs, and the program as users start it."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments.configs import default
from experiments.error_plot import draw_errors, plot_errors
from experiments.factory import build
from experiments.folder_lock import FolderLock
from experiments.options import parse_options
from experiments.published import published_errors
from experiments.results import collect, finished, tabulate, write_csv, write_markdown
from experiments.row_process import Stop, compilation_cache, execute
from experiments.rows import Rows, Run, overriding_arguments, read_rows

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "experiments" / "configs" / "contsup"
COUNTS = {
    "table1": 5, "table2": 17, "table3": 27, "table4": 14, "figure4": 7, "figure5": 44,
    "greedy": 4, "dgl": 4, "infopro": 8,
}  # fmt: skip
TABLE2 = "experiments/configs/contsup/table2.py"


def load(name: str):
    return importlib.import_module(f"experiments.configs.contsup.{name}")


ALL_ROWS = [(name, row) for name in COUNTS for row in load(name).ROWS]


def rows_of(name: str, **overrides) -> Rows:
    return read_rows(str(CONFIGS / f"{name}.py"), [], overrides)


def keys(config: ConfigDict) -> set[str]:
    return set(config.to_dict()) | {f"{group}.{key}" for group in config for key in _members(config, group)}


def _members(config: ConfigDict, name: str):
    value = config.get_ref(name).get()
    return value if isinstance(value, ConfigDict) else ()


@pytest.mark.parametrize(("name", "row"), ALL_ROWS, ids=lambda text: text)
def test_every_row_is_a_config_that_the_factory_accepts(name, row):
    config = load(name).get_config(row)
    assert keys(config) == keys(default.get_config())
    experiment = build(config)
    wanted = parse_options(row, k=0, context="", loss="", decoder=False, network="", data="")
    assert experiment.modules == wanted["k"] or "k=" not in row
    assert config.method == ("end_to_end" if wanted["k"] == 1 else "contsup")
    for option, key in (("network", "network.name"), ("data", "data.name"), ("context", "local.context"),
                        ("loss", "local.loss")):  # fmt: skip
        group, member = key.split(".")
        assert wanted[option] in ("", config[group][member])
    assert config.local.decoder == (wanted["decoder"] or name in ("table3", "infopro"))


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_rows_are_all_there_and_each_once(name, count):
    assert len(set(load(name).ROWS)) == len(load(name).ROWS) == count


def test_published_hyper_parameters():
    config = load("table3").get_config("data=cifar10,k=8")
    assert (config.epochs, config.batch_size, config.optimizer.learning_rate) == (160, 1024, 0.8)
    assert (config.network.name, config.local.context, config.local.loss_scale) == ("resnet110", "R1E", "published")
    optimizer = config.optimizer
    assert (optimizer.warmup_epochs, optimizer.warmup_rate, optimizer.weight_decay) == (10, 0.01, 1e-4)
    assert (optimizer.name, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, True)
    config = load("table3").get_config("data=stl10,k=8")
    assert (config.batch_size, config.optimizer.learning_rate) == (128, 0.1)
    # The rates of epochs 1, 5, 10, 11, 80 and 160, by the authors' formula.
    schedule = build(load("table1").get_config("")).schedule
    epoch = -(-50_000 // 1024)
    rates = [float(schedule((e - 1) * epoch)) for e in (1, 5, 10, 11, 80, 160)]
    assert rates == pytest.approx([0.01, 0.32523, 0.71408, 0.79071, 0.4, 0], abs=1e-5)


def test_balanced_boundaries_and_heads():
    assert build(load("figure4").get_config("network=resnet110,k=3")).boundaries == ("stage1/9", "stage2/2")
    assert load("greedy").get_config("k=4").local.head == "0c1f"
    assert load("dgl").get_config("k=4,network=resnet110,data=stl10").local.head == "1c2f"


def test_options_that_are_true_or_false():
    assert parse_options("decoder=True", decoder=False) == {"decoder": True}
    assert parse_options("decoder=false", decoder=True) == {"decoder": False}
    with pytest.raises(ValueError, match="option 'decoder=1': expected decoder=bool, such as decoder=False"):
        parse_options("decoder=1", decoder=False)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (None, range(1, 6)),
        ("2,1", [1, 2]),
        ("k=1", [1]),  # and not k=16
        ("context=R1", [4]),
        ("k=16,context=E", [3]),
        ("context=R", [2, 4, 5]),
        ("R1", [4, 5]),
    ],
)
def test_rows_are_selected_by_number_or_by_options(text, numbers):
    rows = rows_of("table1")
    assert rows.select(text) == tuple(rows.names[number - 1] for number in numbers)


def test_a_command_is_what_a_user_would_type():
    argv = ["sweep", "--config=x.py", "--config.epochs", "3", "--seeds=1", "--config.local.decoder", "--rows", "k=1",
            "-config.seed=4", "--noconfig.optimizer.nesterov", "--config.data.data_dir=a b"]  # fmt: skip
    arguments = overriding_arguments(argv, lambda name: name != "config.local.decoder")
    assert arguments == ["--config.epochs", "3", "--config.local.decoder", "--noconfig.optimizer.nesterov",
                         "--config.data.data_dir=a b"]  # fmt: skip
    rows = read_rows(f"{CONFIGS}/dgl.py:data=stl10", arguments, {"epochs": 3})
    assert shlex.join(rows.command(Run("k=4", 2), Path("runs/x"))) == (
        f"python -m experiments.train --config={CONFIGS}/dgl.py:data=stl10,k=4 --config.epochs 3 "
        "--config.local.decoder --noconfig.optimizer.nesterov '--config.data.data_dir=a b' --config.seed=2 "
        "--workdir=runs/x/k=4-seed2"
    )
    config = rows.config(Run("k=4", 2))
    assert (config.epochs, config.seed, config.local.modules, config.data.name) == (3, 2, 4, "stl10")
    assert rows.default_workdir() == Path("runs/sweep-dgl-data=stl10-stl10")
    assert rows_of("table1").default_workdir() == Path("runs/sweep-table1-cifar10")
    assert rows_of("table3", **{"data.name": "digits"}).default_workdir() == Path("runs/sweep-table3-digits")


def leave(rows: Rows, run: Run, workdir: Path, *, error: float, **changes) -> Path:
    """What a run of that error leaves in its folder."""
    config = rows.config(run)
    folder = run.folder(workdir)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    summary = {
        "network": config.network.name, "dataset": config.data.name, "modules": config.local.modules,
        "epochs": config.epochs, "steps": 7, "test_accuracy": 1 - error / 100, "train_seconds": 10.0 + run.seed,
        "images_per_second": 100.0, "parameters_trained": 2000, "parameters_deployed": 1000, **changes,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_run_is_done_when_its_config_is_this_one_and_it_went_all_the_way(tmp_path):
    rows, run = rows_of("table1"), Run("k=1", 0)
    folder = leave(rows, run, tmp_path, error=8)
    assert finished(folder, rows.config(run)) is not None
    assert finished(folder, rows.config(Run("k=1", 1))) is None
    assert finished(folder, rows_of("table1", epochs=3).config(run)) is None
    assert finished(folder, rows_of("table1", **{"data.data_dir": "/elsewhere"}).config(run)) is not None
    short = leave(rows, Run("k=1", 1), tmp_path, error=8, epochs=0.14)
    assert finished(short, rows.config(Run("k=1", 1))) is None
    assert finished(short, rows_of("table1", steps=7).config(Run("k=1", 1))) is not None
    (short / "summary.json").unlink()
    assert finished(short, rows.config(Run("k=1", 1))) is None


def test_the_table_is_over_seeds_and_has_what_earlier_sweeps_left(tmp_path):
    rows = rows_of("table2")
    row, other, missing = rows.names[1:4]
    for seed, error in ((0, 8.0), (1, 9.0), (2, 10.0)):
        leave(rows, Run(row, seed), tmp_path, error=error)
    leave(rows, Run(other, 5), tmp_path, error=20.0)
    runs = [Run(row, 0), Run(row, 1), Run(row, 3), Run(missing, 0)]
    lines = tabulate(rows, collect(rows, runs, tmp_path), failed=[Run(missing, 0)])
    assert [(line.number, line.row, line.state, line.seeds) for line in lines] == [
        (2, row, "3 of 4 seeds", 3),
        (3, other, "done", 1),
        (4, missing, "failed", 0),
    ]
    assert (lines[0].error, lines[0].deviation) == pytest.approx((9.0, 1.0))
    assert (lines[0].train_seconds, lines[0].images_per_second) == pytest.approx((11.0, 100.0))
    assert lines[1].error == pytest.approx(20.0)
    assert lines[1].deviation is None
    assert lines[2].error is None
    write_csv(lines, tmp_path / "table.csv")
    first = (tmp_path / "table.csv").read_text().splitlines()[1]
    assert first.startswith(f'2,"{row}",3 of 4 seeds,3,9.0,1.0,') and first.endswith(",100.0,2000,1000")
    write_markdown(lines, tmp_path / "table.md", title="table2", command="python")
    assert f"| 2 | {row} | 3 of 4 seeds | 3 | 9.00 ± 1.00 | 11.0 | 100 | 2,000 | 1,000 |" in (
        (tmp_path / "table.md").read_text()
    )


def summaries(name: str, errors: dict[str, list[float]], **overrides):
    rows = rows_of(name, **overrides)
    found = {}
    for row, values in errors.items():
        for seed, error in enumerate(values):
            config = rows.config(Run(row, seed))
            found[Run(row, seed)] = {
                "network": config.network.name,
                "dataset": config.data.name,
                "modules": config.local.modules,
                "test_accuracy": 1 - error / 100,
            }
    return found


def test_errors_over_k_are_curves_with_the_published_ones_dashed():
    errors = {
        "k=1": [7.0, 8.0],
        "k=4,context=E,loss=softmax": [9.0],
        "k=2,context=E,loss=softmax": [7.0, 9.0],
        "k=2,context=R1E,loss=softmax": [6.5],
    }
    figure = draw_errors({**summaries("table2", errors), Run("k=8", 0): None}, title="table2")
    (axes,) = figure.axes
    curves = {container.get_label(): container for container in axes.containers}
    assert set(curves) == {"E", "R1E"}
    line, _, (bars,) = curves["E"]
    assert line.get_xydata().ravel() == pytest.approx([2, 8.0, 4, 9.0])
    assert bars.get_segments()[0][:, 1] == pytest.approx([8 - 2**0.5, 8 + 2**0.5])
    dashed = {line.get_label(): line for line in axes.lines if line.get_linestyle() == "--"}
    assert set(dashed) == {f"{method}, published" for method in published_errors("resnet32", "cifar10")}
    assert list(dashed["DGL, published"].get_ydata()) == [8.69, 11.48, 14.17, 16.21]
    assert list(dashed["end to end, published"].get_ydata()) == [7.37, 7.37]
    (ours,) = [line for line in axes.lines if line.get_label() == "end to end"]
    assert list(ours.get_ydata()) == pytest.approx([7.5, 7.5])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "4", "8", "16"]


def test_errors_of_a_single_k_are_bars():
    errors = {"k=1": [7.0], "k=16,context=R0": [16.0], "k=16,context=E": [11.0]}
    (axes,) = draw_errors(summaries("table1", errors), title="table1").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["end to end", "R0", "E"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([7, 16, 11])
    dashed = {line.get_label(): line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"}
    assert dashed["InfoPro softmax, published"] == 14.23


@pytest.mark.parametrize("overrides", [{"data.name": "digits"}, {"network.name": "resnet20"}])
def test_published_errors_stand_beside_their_own_network_and_data_only(overrides):
    errors = {"k=16,context=R0": [16.0], "k=16,context=E": [11.0]}
    (axes,) = draw_errors(summaries("table1", errors, **overrides), title="table1").axes
    assert not [line for line in axes.lines if line.get_linestyle() == "--"]


def test_each_data_set_has_a_panel_and_a_single_row_is_drawn_too(tmp_path):
    errors = {"data=cifar10,k=1": [7.0], "data=stl10,k=2,loss=softmax": [22.0]}
    figure = draw_errors(summaries("table3", errors), title="table3")
    assert [axes.get_title() for axes in figure.axes] == ["resnet110 on cifar10", "resnet110 on stl10"]
    assert not plot_errors({Run("k=1", 0): None}, tmp_path / "picture.png", title="nothing")
    assert not list(tmp_path.iterdir())


def run_python(code: str, tmp_path: Path) -> str | None:
    with Stop() as stop, (tmp_path / "lock").open("w") as lock:
        return execute([sys.executable, "-c", code], environment=os.environ, stop=stop, descriptor=lock.fileno(),
                       started=lambda process: None)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("print('hello')", None),
        ("import sys; print('error: no such thing', file=sys.stderr); sys.exit(2)", "no such thing"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; print('jax.errors.E: RESOURCE\\n----', file=sys.stderr); sys.exit(1)", "----"),
        ("import sys; print('a.XError: RESOURCE\\n----\\nhint', file=sys.stderr); sys.exit(1)", "a.XError: RESOURCE"),
        ("raise SystemExit(7)", "exit status 7"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, perhaps for want of memory"),
        ("import os; os.kill(os.getpid(), 6)", "killed by SIGABRT"),
    ],
)
def test_a_row_that_fails_is_told_by_its_last_error_line(code, error, tmp_path):
    assert run_python(code, tmp_path) == error


def test_a_folder_belongs_to_one_sweep(tmp_path):
    first = FolderLock(tmp_path, report=print, stopped=lambda: False)
    first.name_row(123)
    with pytest.raises(ValueError, match=rf"is in use by a sweep, process {os.getpid()} on .*use another --workdir"):
        FolderLock(tmp_path, report=print, stopped=lambda: False)
    first.release()
    FolderLock(tmp_path, report=print, stopped=lambda: False).release()


SMALL = [
    f"--config={TABLE2}",
    "--config.network.name=resnet8",
    "--config.data.name=digits",
    "--config.batch_size=32",
]
TINY = [*SMALL, "--config.epochs=1", "--config.data.train_examples=64"]


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=1"}
    # Into files: a row that outlives its sweep would keep a pipe open.
    with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.sweep", *arguments],
            cwd=ROOT, env=environment, stdout=out, stderr=err,
        )  # fmt: skip


def sweep(arguments: list[str], log: Path) -> tuple[int, str, str]:
    status = start(arguments, log).wait(timeout=300)
    out, err = log.with_suffix(".out").read_text(), log.with_suffix(".err").read_text()
    assert "Traceback" not in out + err
    return status, out, err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "default.py has no ROWS, a tuple .*: use experiments/configs/contsup/dgl.py, .*table1.py"),
        (["--config=nothing.py"], "no config file 'nothing.py'"),
        ([f"--config={TABLE2}", "--sedes=1"], "Unknown command line flag 'sedes'. Did you mean: seeds"),
        ([f"--config={TABLE2}", "--config.epoch=1"], r"unknown config key 'epoch': use .*\(nearest: epochs\)"),
        ([f"--config={TABLE2}", "--config.epochs=few"], "epochs=few: invalid literal for int"),
        ([f"--config={TABLE2}", "--seeds=0,one"], "--seeds=0,one: use whole numbers from 0 to .*--seeds=0,1,2"),
        ([f"--config={TABLE2}", "--seeds=-1"], "--seeds=-1: use whole numbers from 0"),
        ([f"--config={TABLE2}", "--seeds=1", "--config.seed=1"], "--config.seed and --seeds both say the seed"),
        ([f"--config={TABLE2}", "--rows=k=3"], "--rows=k=3: no row of .* is like that; use .*\n  1 k=1\n"),
        ([f"--config={TABLE2}", "--rows="], "--rows=: no row"),
        ([f"--config={TABLE2}", "--rows=0"], "--rows=0: .* has rows 1 to 17"),
        ([f"--config={TABLE2}", "--rows=18"], "--rows=18: .* has rows 1 to 17"),
        ([f"--config={TABLE2}:k=8"], "option 'k' of .*table2.py:k=8 is what its rows differ in"),
        ([f"--config={TABLE2}:depth=8"], "unknown option 'depth': use k, context or loss"),
        ([f"--config={TABLE2}", "table"], "unexpected argument 'table'"),
        ([f"--config={TABLE2}", "--workdir=/proc/nowhere"], "workdir '/proc/nowhere' cannot be used: .*another"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_is_refused_in_one_message(arguments, message, tmp_path):
    status, out, err = sweep(arguments, tmp_path / "log")
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("error:") == 1
    assert re.search(message, err, re.DOTALL), err


@pytest.mark.slow
def test_commands_are_printed_one_a_line_and_nothing_is_run(tmp_path):
    arguments = [*TINY, "--rows=k=4", "--seeds=0,1", f"--workdir={tmp_path / 'sweep'}", "--print_commands"]
    status, out, err = sweep(arguments, tmp_path / "log")
    assert (status, err) == (0, "")
    lines = [shlex.split(line) for line in out.splitlines()]
    assert len(lines) == 8
    assert lines[0] == [
        "python", "-m", "experiments.train", f"--config={TABLE2}:k=4,context=E,loss=contrast", *TINY[1:],
        "--config.seed=0", f"--workdir={tmp_path}/sweep/k=4,context=E,loss=contrast-seed0",
    ]  # fmt: skip
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_sweep_leaves_table_and_picture_names_what_failed_and_skips_what_is_done(tmp_path):
    workdir = tmp_path / "sweep"
    # ResNet-8 has 5 blocks: no 16 modules.
    arguments = [*TINY, "--rows=1,5,2", f"--workdir={workdir}"]
    status, out, err = sweep(arguments, tmp_path / "first")
    assert status == 1
    message = "k=16,context=E,loss=contrast seed 0: 16 modules for a network of 5 blocks: use 1 to 5"
    assert err.endswith(f"error: 1 of 3 runs failed; the same command tries them again:\n  {message}\n")
    assert "run 1 of 3: k=1 seed 0\n" in out and "run 2 of 3: k=2,context=E,loss=contrast seed 0, about 0:0" in out
    states = [line.rsplit('"', 1)[-1].split(",")[1] for line in (workdir / "table.csv").read_text().splitlines()[2:]]
    assert states == ["done", "failed"]
    assert "| 1 | k=1 | done | 1 |" in (workdir / "table.md").read_text()
    assert (workdir / "error_over_modules.png").read_bytes().startswith(b"\x89PNG")
    before = (workdir / "k=1-seed0" / "summary.json").stat().st_mtime_ns

    status, out, err = sweep([*TINY, "--rows=1,2", f"--workdir={workdir}"], tmp_path / "second")
    assert (status, err) == (0, "")
    assert out.count("done already") == 2 and "epoch" not in out
    assert (workdir / "k=1-seed0" / "summary.json").stat().st_mtime_ns == before

    status, out, err = sweep([*TINY, "--rows=1", "--config.epochs=2", f"--workdir={workdir}"], tmp_path / "third")
    assert (status, out) == (2, "")
    assert "holds a run of another config:\n  epochs: 1 there, 2 now\n" in err


def test_rows_share_compiled_steps_where_the_user_has_not_chosen_otherwise(tmp_path, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    environment = compilation_cache(tmp_path)
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".jax-cache")
    assert environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    assert environment["PATH"] == os.environ["PATH"]
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    assert compilation_cache(tmp_path)["JAX_COMPILATION_CACHE_DIR"] == "/mine"


LONG = [*SMALL, "--config.epochs=25", "--config.data.train_examples=192", "--rows=1,2"]


def wait_for_records(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    path = folder / "metrics.jsonl"
    while not path.exists() or not path.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_the_same_command_goes_on(tmp_path, number):
    workdir = tmp_path / "sweep"
    arguments = [*LONG, f"--workdir={workdir}"]
    process = start(arguments, tmp_path / "first")
    wait_for_records(workdir / "k=1-seed0", process)
    process.send_signal(number)
    status = process.wait(timeout=240)
    err = (tmp_path / "first.err").read_text()
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        assert status == -number
    else:
        assert status == 128 + number
        assert err.endswith(
            f"error: interrupted by {number.name}; saved in {workdir}: the same command goes on from there\n"
        )
        assert "| not done | 0 |" in (workdir / "table.md").read_text()
    status, out, err = sweep(arguments, tmp_path / "second")
    assert status == 0, err
    assert "going on from step" in out
    assert ("asked to save and stop" in out) == (number == signal.SIGKILL)
    assert (workdir / "table.md").read_text().count("| done | 1 |") == 2
