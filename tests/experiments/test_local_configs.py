"""The configs of the methods after ContSup: their rows are those of the papers, and build."""

import importlib
from pathlib import Path

import pytest

from experiments.configs.checks import check_used
from experiments.from_config.experiment import build

FOLDER = Path(__file__).parents[2] / "experiments" / "configs" / "local"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "def get_config" in path.read_text())


def load(name: str):
    return importlib.import_module(f"experiments.configs.local.{name}")


ROWS = [
    pytest.param(name, row, marks=() if row == load(name).ROWS[0] else pytest.mark.exhaustive, id=f"{name}-{row}")
    for name in NAMES
    for row in load(name).ROWS
]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_is_accepted_by_the_factory(name, row):
    config = load(name).get_config(row)
    assert build(config).modules == (None if config.method == "end_to_end" else config.local.modules)


@pytest.mark.parametrize(
    ("name", "row", "modules", "head", "loss", "auxiliary"),
    [
        ("dgl", "network=resnet32", 16, "dgl", "softmax", "head"),
        ("dgl", "network=resnet110", 55, "dgl", "softmax", "head"),
        ("predsim", "network=resnet32", 16, "pool", "predsim", "head"),
        ("auglocal", "network=resnet32,depth=3", 13, "1c2f", "softmax", "auglocal"),
        ("auglocal", "network=resnet110,depth=6", 49, "1c2f", "softmax", "auglocal"),
    ],
)
def test_baselines_and_auglocal_in_the_common_protocol(name, row, modules, head, loss, auxiliary):
    config = load(name).get_config(row)
    local, optimizer = config.local, config.optimizer
    assert (local.modules, local.boundaries, local.context) == (modules, "single", "R0")
    assert (local.head, local.loss, local.auxiliary) == (head, loss, auxiliary)
    assert (config.epochs, config.batch_size, optimizer.learning_rate, optimizer.weight_decay) == (400, 1024, 0.8, 1e-4)
    assert (optimizer.name, optimizer.schedule, optimizer.warmup_epochs) == ("sgd", "contsup", 10)


@pytest.mark.parametrize(
    ("name", "row", "boundaries", "head", "last_weights"),
    [
        ("man", "k=15", "man", "2c2f", (5 * 11 / 14, 0.5 * 11 / 14)),
        ("man", "k=8,decoder=false", "man", "2c2f", ()),
        ("man_plus", "k=16", "man_plus", "dgl_wide", ()),
        ("man_plus", "k=9,infopro=true", "man_plus", "2c2f", (5 * 3 / 6, 0.5 * 3 / 6)),
    ],
)
def test_man_and_man_plus_in_the_common_protocol(name, row, boundaries, head, last_weights):
    config = load(name).get_config(row)
    local, optimizer = config.local, config.optimizer
    assert (local.boundaries, local.context, local.head, local.auxiliary) == (boundaries, "R0", head, "momentum")
    assert (config.epochs, config.batch_size, optimizer.learning_rate, optimizer.weight_decay) == (400, 1024, 0.8, 1e-4)
    modules = build(config).method.cut_network.modules
    assert len(modules) == local.modules
    assert modules[-2].weights == pytest.approx(last_weights)
    if name == "man_plus":
        assert config.momentum.scale == "trained"
        assert modules[0].names == ("stem",)
        assert modules[0].classifies == ("infopro" not in row)


def test_stl10_has_its_own_batch_and_rate():
    config = load("dgl").get_config("data=stl10")
    assert (config.batch_size, config.optimizer.learning_rate, config.epochs) == (128, 0.1, 400)


@pytest.mark.parametrize(
    ("name", "row", "modules", "head", "decoder"),
    [
        ("hpff", "network=resnet32,k=8", 8, "2c2f", True),
        ("hpff", "variant=dgl", 15, "dgl", False),
        ("mlaan", "network=resnet110,k=32", 32, "0c1f", False),
    ],
)
def test_methods_of_pairs_in_the_common_protocol(name, row, modules, head, decoder):
    config = load(name).get_config(row)
    check_used(config)
    assert (config.method, config.local.modules, config.local.boundaries) == (name, modules, "man")
    assert (config.local.head, config.local.decoder) == (head, decoder)
    assert (config.epochs, config.batch_size, config.optimizer.learning_rate) == (400, 1024, 0.8)
