"""The rows of the comparisons of all methods: they build, and their scale."""

import importlib

import pytest

from experiments.configs.evidence.scale import SHORT_STEPS, accumulated, scaled
from experiments.configs.local.methods import METHODS, method_config
from experiments.configs.objectives import OBJECTIVES
from experiments.from_config.experiment import build

NAMES = ("local", "distillation", "both")


def load(name: str):
    return importlib.import_module(f"experiments.configs.evidence.{name}")


ROWS = [
    pytest.param(name, row, marks=() if i % 30 == 3 else pytest.mark.exhaustive, id=f"{name}-{row}")
    for name in NAMES
    for i, row in enumerate(load(name).ROWS)
]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_is_accepted_by_the_factory(name, row):
    build(load(name).get_config(row), fresh_teachers=True)


def test_all_methods_and_objectives_have_rows():
    methods = [dict(item.split("=") for item in row.split(","))["method"] for row in load("local").ROWS]
    assert set(methods) == {"end_to_end", "end_to_end_remat", *METHODS}
    assert {row.removeprefix("method=") for row in load("distillation").ROWS} >= {"end_to_end", *OBJECTIVES}


def test_a_short_run_has_the_published_schedule_over_fewer_steps():
    whole, short = (load("local").get_config(f"method=man,k=4,scale={scale}") for scale in ("published", "short"))
    assert (whole.batch_size, whole.epochs, whole.steps, whole.optimizer.learning_rate) == (1024, 400, None, 0.8)
    assert (short.batch_size, short.epochs, short.steps) == (32, 400, SHORT_STEPS)
    assert short.optimizer.schedule_steps == SHORT_STEPS
    assert short.optimizer.learning_rate == pytest.approx(0.025)
    assert (short.local.modules, short.local.boundaries, short.local.auxiliary) == (4, "equal", "momentum")


def test_the_comparison_has_any_number_of_modules():
    comparison = importlib.import_module("experiments.configs.local.comparison")
    for row in comparison.ROWS[1:]:
        local = comparison.get_config(f"k=4,{row}").local
        assert (local.modules, local.boundaries) == (4, "equal")
    assert comparison.get_config("k=4,method=end_to_end").method == "end_to_end"


def test_accumulation_keeps_the_images_of_an_update():
    config = accumulated(scaled(load("both").get_config("method=kd"), "short"), 4)
    assert (config.batch_size, config.optimizer.accumulate) == (8, 4)
    assert config.steps == config.optimizer.schedule_steps == 4 * SHORT_STEPS
    with pytest.raises(ValueError, match="accumulate is 3, but an update has 64 images: use a divisor"):
        load("both").get_config("method=kd,accumulate=3")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("local", "scale=tiny", "unknown scale 'tiny': use published or short"),
        ("distillation", "pair=resnet20-resnet8", "unknown pair 'resnet20-resnet8'"),
        ("distillation", "data=mnist", "unknown data 'mnist': use cifar100 or cifar10"),
    ],
)
def test_unknown_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name).get_config(options)
    with pytest.raises(ValueError, match="unknown method 'mann'"):
        method_config("mann")
