"""Values outside of the range of each key, and values that would be ignored, made from the description of the keys."""

import contextlib
import io
import time

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.config_flag import set_keys
from experiments.configs.checks import check_used, flat_values
from experiments.configs.contradictions import check_config, check_warmups, remarks
from experiments.configs.default import get_config
from experiments.configs.description import Key
from experiments.configs.keys import all_keys
from experiments.configs.objectives import HYPER_PARAMETERS
from experiments.train import __main__ as program
from kd_local.ranges import Choice, Number, Numbers, Range, Switch, Text

NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e308",
    "-1e308",
    "abc",
    "1,2",
    "(1,)",
    "0x1f",
    "9" * 30,
    "9" * 5000,
    "[]",
    "1 2",
    "--",
)


def bad_texts(key: Key) -> list[str]:
    texts = {
        Number: lambda of: [*NUMBERS, repr(of.low - 1), repr(of.high + 1), *(["1.5", "1e3"] if of.whole else [])],
        Choice: lambda of: [of.names[0] + "x", of.names[0].upper() + "_", "1", "()", f"{of.names[0]},{of.names[0]}"],
        Switch: lambda of: ["maybe", "2", "Truee", "yes please", "-1", "nan"],
        Numbers: lambda of: [
            "('a',)", "abc", "1,nan", "1,inf", "1e308,2", "2;3", "-1", "0", *(["3,3", "5,4"] if of.rising else ["()"]),
        ],
    }.get(type(key.values), lambda of: ["\0"])(key.values)  # fmt: skip
    if key.optional or isinstance(key.values, Numbers | Text):
        return texts
    names = key.values.names if isinstance(key.values, Choice) else ()
    return [*texts, *(text for text in ("", "none", "None") if text not in names)]


BAD = [(name, text) for name, key in all_keys().items() for text in bad_texts(key)]


def refusal(arguments: list[str]) -> str:
    """What the program prints for arguments that it refuses before it builds anything."""
    err = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(err):
        flags.FLAGS.unparse_flags()
        with pytest.raises(SystemExit) as stopped:
            program.parse(["train", *arguments])
        assert stopped.value.code == 2
    assert "Traceback" not in err.getvalue()
    return err.getvalue()


def test_values_outside_of_their_range_are_refused_at_once():
    assert len(BAD) > 1000
    slowest = 0.0
    for name, text in BAD:
        start = time.perf_counter()
        message = refusal([f"--config.{name}={text}"])
        slowest = max(slowest, time.perf_counter() - start)
        assert message.count("\n") == 1 and message.startswith("error: "), (name, text[:40], message)
        assert name in message or "unknown " in message or f"{name.rpartition('.')[2]} is" in message, (
            name,
            text[:40],
            message,
        )
    assert slowest < 1


def other(values: Range, default: object) -> object:
    """A value in the range that is not the default."""
    match values:
        case Number():
            return next(n for n in (values.high if values.whole else values.high / 2, values.low) if n != default)
        case Choice():
            return next(name for name in values.names if name != default)
        case Switch():
            return default is not True
        case Numbers():
            return (1, 2) if default != (1, 2) else (1,)
    return {"R1E": "R1", "last": "ensemble", "auto": "none"}.get(str(default), "stem,stage1/0" if default else "8GiB")


@pytest.mark.parametrize(
    ("method", "auxiliary"), [("contsup", "head"), ("end_to_end", "head"), ("kd", "head"), ("contsup", "teacher")]
)
def test_values_that_are_ignored_are_refused(method, auxiliary):
    config = get_config()
    set_keys(
        config, {"method": method, "local.auxiliary": auxiliary, "optimizer.name": "adam", "optimizer.warmup_epochs": 0}
    )
    values = flat_values(config)
    for name, key in all_keys().items():
        if name == "method" or all(use.holds(values) for use in key.uses):
            continue
        set_keys(config, {name: other(key.values, values[name])})
        with pytest.raises(ValueError, match=rf"{name} is .*, which has an effect only with .* --config.{name}="):
            check_used(config)
        set_keys(config, {name: values[name]})
    check_used(config)


@pytest.mark.parametrize("method", HYPER_PARAMETERS)
def test_hyper_parameters_of_a_term_without_weight_are_refused(method):
    for name, (_, values, _, weights) in HYPER_PARAMETERS[method].items():
        config = get_config()
        set_keys(config, {"method": method, **{f"{method}.{weight}": 0.0 for weight in weights}})
        check_used(config)
        if weights:
            set_keys(config, {f"{method}.{name}": other(values, config[method][name])})
            with pytest.raises(ValueError, match=rf"{method}.{name} is .* only with .*{method}.{weights[0]}.* above 0"):
                check_used(config)


WARM = {"optimizer.warmup_epochs": 3, "dkd.warmup_epochs": 3, "method": "dkd"}


@pytest.mark.parametrize("key", ["optimizer.warmup_epochs", "dkd.warmup_epochs"])
def test_a_given_warm_up_longer_than_the_run_is_refused(key):
    config = get_config()
    set_keys(config, {"epochs": 3, **WARM, key: 4})
    with pytest.raises(ValueError, match=f"{key} is 4, but the run has 3 epochs: use 0 .* to 3, or more epochs"):
        check_warmups(config, {key})
    check_warmups(config, {"epochs"})  # of a config file or a default
    set_keys(config, {key: 3})
    check_warmups(config, {key})


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ({"epochs": 4}, []),
        ({"epochs": 3}, ["the run of 3 epochs ends within the warm-up (3 epochs): the learning rate stays below 0.1"]),
        (
            {"epochs": 4, "optimizer.warmup_epochs": 5, "dkd.warmup_epochs": 20},  # the defaults
            [
                "the run of 4 epochs ends within the warm-up (5 epochs): the learning rate stays below 0.1",
                "dkd.warmup_epochs is 20: in 4 epochs the weight reaches 20% of its value",
            ],
        ),
    ],
)
def test_a_warm_up_that_the_run_does_not_complete_is_noted(values, notes):
    config = get_config()
    set_keys(config, {**WARM, **values})
    check_config(config)
    assert list(remarks(config)) == notes
