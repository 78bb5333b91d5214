"""The rows of every table and figure: their configs, how they are selected, and the commands that train them."""

import importlib
import shlex
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments.config_flag import split_arguments
from experiments.configs import default
from experiments.configs.checks import check_used, read
from experiments.configs.config_file import config_of, read_module
from experiments.configs.options import parse_options
from experiments.from_config.experiment import build
from experiments.sweep.rows import Rows, Run, read_rows

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs" / "contsup"
COUNTS = {
    "table1": 5, "table2": 17, "table3": 27, "table4": 14, "figure4": 7, "figure5": 44,
    "greedy": 4, "dgl": 4, "infopro": 8,
}  # fmt: skip


def load(name: str):
    return importlib.import_module(f"experiments.configs.contsup.{name}")


ALL_ROWS = [(name, row) for name in COUNTS for row in load(name).ROWS]
BUILT = [
    pytest.param(name, row, marks=() if row == load(name).ROWS[-1] else pytest.mark.exhaustive)
    for name, row in ALL_ROWS
]


def rows_of(name: str, **overrides) -> Rows:
    return read_rows(str(CONFIGS / f"{name}.py"), {key: str(value) for key, value in overrides.items()}, overrides)


def keys(config: ConfigDict) -> set[str]:
    return set(config.to_dict()) | {f"{group}.{key}" for group in config for key in _members(config, group)}


def _members(config: ConfigDict, name: str):
    value = config.get_ref(name).get()
    return value if isinstance(value, ConfigDict) else ()


DEFAULT_KEYS = keys(default.get_config())


@pytest.mark.parametrize(("name", "row"), ALL_ROWS, ids=lambda text: text)
def test_every_row_sets_what_its_options_name(name, row):
    config = load(name).get_config(row)
    assert keys(config) == DEFAULT_KEYS
    wanted = parse_options(row, k=16, context="", loss="", decoder=False, network="", data="")
    assert config.method == ("end_to_end" if wanted["k"] == 1 else "contsup")
    if wanted["k"] == 1:
        assert config.local.to_dict() == default.get_config().local.to_dict()
        return
    assert config.local.modules == wanted["k"]
    for option, key in (("network", "network.name"), ("data", "data.name"), ("context", "local.context"),
                        ("loss", "local.loss")):  # fmt: skip
        group, member = key.split(".")
        assert wanted[option] in ("", config[group][member])
    assert config.local.decoder == (wanted["decoder"] or name in ("table3", "infopro"))


@pytest.mark.parametrize(("name", "row"), BUILT, ids=lambda text: text)
def test_a_row_is_accepted_by_the_factory(name, row):
    config = load(name).get_config(row)
    assert build(config).modules == (config.local.modules if config.method == "contsup" else None)


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_every_row_occurs_once(name, count):
    assert len(set(load(name).ROWS)) == len(load(name).ROWS) == count


def test_published_hyper_parameters():
    config = load("table3").get_config("data=cifar10,k=8")
    assert (config.epochs, config.batch_size, config.optimizer.learning_rate) == (160, 1024, 0.8)
    assert (config.network.name, config.local.context, config.local.loss_scale) == ("resnet110", "R1E", "published")
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.warmup_epochs, optimizer.weight_decay) == ("sgd", 10, 1e-4)
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


@pytest.mark.parametrize("text", ["x", "1-3", "-1", "context", "6", "", " ", "²", "k", "0", "K=16"])
def test_a_text_that_is_no_part_of_a_row_selects_nothing(text):
    rows = rows_of("table1")
    if text in ("context", "k"):  # names of options
        assert rows.select(text)
        return
    with pytest.raises(ValueError, match=f"--rows={text}: "):
        rows.select(text)


def test_a_command_is_what_a_user_would_type():
    arguments = ["--config=x.py", "--config.epochs", "3", "--seeds=1", "--config.local.decoder", "--rows", "k=1",
                 "--noconfig.optimizer.nesterov", "--config.data.data_dir=a b"]  # fmt: skip
    others, texts = split_arguments(arguments)
    assert others == ["--config=x.py", "--seeds=1", "--rows", "k=1"]
    rows = read_rows(f"{CONFIGS}/dgl.py:data=stl10", texts, {name: read(name, text) for name, text in texts.items()})
    assert shlex.join(rows.command(Run("k=4", 2), Path("runs/x"))) == (
        f"python -m experiments.train --config={CONFIGS}/dgl.py:data=stl10,k=4 --config.epochs=3 "
        "--config.local.decoder=true --config.optimizer.nesterov=false '--config.data.data_dir=a b' --config.seed=2 "
        "--workdir=runs/x/k=4-seed2"
    )
    config = rows.config(Run("k=4", 2))
    assert (config.epochs, config.seed, config.local.modules, config.data.name) == (3, 2, 4, "stl10")
    assert rows.default_workdir() == Path("runs/sweep-dgl-data=stl10-stl10")
    assert rows_of("table1").default_workdir() == Path("runs/sweep-table1-cifar10")
    assert rows_of("table3", **{"data.name": "digits"}).default_workdir() == Path("runs/sweep-table3-digits")


def test_a_row_takes_the_keys_of_the_command_line_that_it_uses():
    overrides = {"teacher.weights": "runs/teacher", "kd.temperature": 2.0}
    texts = {name: str(value) for name, value in overrides.items()}
    rows = read_rows(str(CONFIGS.parent / "blockkd" / "digits.py"), texts, overrides)
    by_row = {row: rows.config(Run(row, 0)) for row in rows.names}
    assert by_row["method=end_to_end"].teacher.weights is None
    assert by_row["method=dkd"].teacher.weights == "runs/teacher"
    assert [by_row[f"method={name}"].kd.temperature for name in ("kd", "dkd")] == [2.0, 4.0]
    command = rows.command(Run("method=end_to_end", 0), Path("runs/x"))
    assert not any(argument.startswith("--config.teacher") for argument in command)
    with pytest.raises(
        ValueError,
        match=r"--config.local.head: no row of .*digits.py uses it: it has an effect only with method=contsup",
    ):
        read_rows(str(CONFIGS.parent / "blockkd" / "digits.py"), {"local.head": "0c1f"}, {"local.head": "0c1f"})


FILES = sorted((CONFIGS.parent).glob("*/*.py"))


@pytest.mark.parametrize(
    "path", [file for file in FILES if "def get_config" in file.read_text()], ids=lambda path: path.stem
)
def test_no_config_file_sets_what_is_ignored(path):
    module = read_module(path)
    check_used(config_of(module, path, None))
    for row in getattr(module, "ROWS", ()):
        check_used(config_of(module, path, row))
