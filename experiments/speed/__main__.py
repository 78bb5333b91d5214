"""Time training steps: python -m experiments.speed --config=FILE.py [--methods=end_to_end,contsup] [--contexts=R0,R1E]

A row is a method, a context, a form of the step and a precision. --pytorch=nchw,channels_last adds rows for the same
steps in PyTorch. Every row has its own process. The rounds of all rows are interleaved, and one row runs at a time. The
program prints a table, and writes speed.jsonl, with a line per row, and speed.png to the working directory. A round is
timed once and kept there: the same command resumes a table that was interrupted, and one with more rows times the new
ones, in turn with those that they are compared with.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # imports take seconds

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments.command_line import USAGE_STATUS, check_counted, fail, numbers, parse
from experiments.config_flag import define_config, given_keys
from experiments.configs.checks import check_given, check_used
from experiments.configs.contradictions import check_config, check_files
from experiments.configs.description import shown
from experiments.configs.uses import METHODS
from experiments.speed.rows import DTYPES, FORMS, LAYOUTS, PYTORCH, SpeedRow, configured
from kd_local.choices.local import read_context
from kd_local.choices.steps import COUNTED
from kd_local.errors import unknown
from kd_local.paths import read_folder

_IGNORED = {
    "method": "use --methods",
    "local.context": "use --contexts",
    "teacher.dtype": "use --dtypes",
    "teacher.cache": "teachers run in each step",
    "steps": "use --steps",
    "epochs": "use --steps",
    "checkpoint.": "nothing is saved",
    "distributed.": "leave it out",
    "data.workers": "the images are random",
}
"""Keys that the rows set, or that nothing here depends on, each with the way out."""
IN_PYTORCH = ("end_to_end", "contsup", "kd")

_CONFIG = define_config()
_METHODS = flags.DEFINE_list(
    "methods", ["end_to_end", "contsup"], "Methods; those of distillation need a teacher in the config."
)
_CONTEXTS = flags.DEFINE_list("contexts", ["R0", "E", "R1", "R1E"], "Contexts of contsup.")
_MODULES = flags.DEFINE_string("modules", None, "Numbers of modules of contsup. The default is the config's.")
_FORMS = flags.DEFINE_list("forms", ["separate", "joined", "scanned"], f"Forms of the step: {', '.join(FORMS)}.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], f"Precisions: {', '.join(DTYPES)}, in place of network.dtype.")
_PYTORCH = flags.DEFINE_list(
    "pytorch", [], f"Rows in PyTorch of {', '.join(IN_PYTORCH)}: {', '.join(LAYOUTS)}; +compile may follow."
)
_STEPS = flags.DEFINE_integer("steps", 50, "Steps of a round, and of a call of the form scanned.", 1, 100_000)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of timed rounds of each row.", 1, 10_000)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Number of rows that compile at once.", 1, 256)
_SECONDS = flags.DEFINE_float("seconds", 3600.0, "Time limit; rows that compile longer are left out.", 0, 1e7)
_PROFILE = flags.DEFINE_string(
    "profile", None, "Folder for a trace of each row, for TensorBoard. Notes say what the time was spent on."
)
_SLOWEST = flags.DEFINE_integer(
    "slowest",
    None,
    "Number of rows to trace: those with the fewest operations a second. The default is all.",
    1,
    10_000,
)
_TARGET = flags.DEFINE_string(
    "target", "local", f"Devices: {', '.join(COUNTED)}. For a TPU target, times are predicted from compiled counts."
)
_FRESH = flags.DEFINE_bool("fresh", False, "Compile and time rows again whose figures are in the folder.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/speed", "Folder of the results.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        config = _CONFIG.value
        modules = str(config.local.modules) if _MODULES.value is None else _MODULES.value
        if not _SECONDS.value >= 0:
            raise ValueError(f"--seconds={_SECONDS.value}: use a number from 0 to 1e7")
        rows = rows_of(numbers("modules", modules, example="4,16", lowest=1))
        check_counted(_TARGET.value)
        if _TARGET.value != COUNTED[0] and (_PYTORCH.value or _PROFILE.value is not None or _FRESH.value):
            raise ValueError(
                f"--target={_TARGET.value}: nothing is run there; leave out --pytorch, --profile and --fresh"
            )
        if _SLOWEST.value is not None and _PROFILE.value is None:
            raise ValueError(f"--slowest={_SLOWEST.value} is of the rows to trace: name a folder with --profile")
        check_given(given_keys(), _IGNORED)
        check_used(config, _alternatives(rows))
        check_ignored(config)
        for row in rows:
            check_config(configured(row, config))
            check_files(configured(row, config), shapes_only=True)
        workdir = read_folder(_WORKDIR.value, "workdir")
        profiles = None if _PROFILE.value is None else read_folder(_PROFILE.value, "profile")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)

    from experiments.speed.run import Timing, predict, run  # imports JAX

    if _TARGET.value != COUNTED[0]:
        predict(config, rows, _TARGET.value, _STEPS.value, workdir)
    else:
        timing = Timing(
            steps=_STEPS.value,
            rounds=_ROUNDS.value,
            processes=_PROCESSES.value,
            seconds=_SECONDS.value,
            profile=profiles,
            slowest=_SLOWEST.value,
            fresh=_FRESH.value,
        )
        run(config, rows, timing, workdir)


def _alternatives(rows: Sequence[SpeedRow]) -> dict[str, Sequence[Any]]:
    """What the rows set in place of the config's values."""
    return {
        "method": sorted({row.method for row in rows}),
        "local.modules": sorted({row.modules for row in rows}),
        "local.context": sorted({row.context or "R0" for row in rows}),
    }


def check_ignored(config: ConfigDict) -> None:
    """Checks that neither the rows nor PyTorch's steps ignore a key that the config sets.

    Raises:
        ValueError: a key is set that another flag replaces, or that PyTorch's steps do not have.
        ModuleNotFoundError: there are rows in PyTorch, which is not installed.
    """
    for key, fixed, way_out in (
        ("step", None, "name the forms with --forms"),
        ("steps_per_call", None, "name the form scanned with --forms, and its steps with --steps"),
        ("data.on_devices", None, "the form scanned holds the images on the device"),
        ("network.dtype", "float32", "name the precisions with --dtypes"),
        ("mesh.data", 1, "python -m experiments.pipeline times several devices"),
        ("mesh.module", 1, "python -m experiments.pipeline times several devices"),
    ):
        if (value := config[key] if "." not in key else config[key.split(".")[0]][key.split(".")[1]]) != fixed:
            raise ValueError(f"{key} is {value}, which the rows would ignore: leave it at {shown(fixed)}; {way_out}")
    if not _PYTORCH.value:
        return
    if find_spec("torch") is None:
        raise ModuleNotFoundError("rows in PyTorch need torch: pip install torch, or leave out --pytorch")
    if not set(_METHODS.value) & set(IN_PYTORCH):
        raise ValueError(
            f"{_METHODS.value[0]} has no step in PyTorch: use {', '.join(IN_PYTORCH)}, or leave out --pytorch"
        )
    for name, value in config.loss.items():
        if value:
            raise ValueError(f"loss.{name} is {value}, which PyTorch's step does not have: leave it, or --pytorch, out")
    if not re.fullmatch(r"resnet\d+", config.network.name):
        raise ValueError(f"{config.network.name} has no step in PyTorch: use a CIFAR ResNet, or leave out --pytorch")
    for name, there in (("loss", "softmax"), ("decoder", False), ("image_encoder", "full")):
        if config.local[name] != there:
            raise ValueError(
                f"local.{name} is {config.local[name]}, but PyTorch's step has {there}: use {there}, or leave out "
                "--pytorch"
            )


def rows_of(modules: Sequence[int]) -> list[SpeedRow]:
    """The rows that the flags ask for, in order of their cost.

    Raises:
        ValueError: a form, precision or context is unknown, or there is no row.
    """
    for name, given in (("methods", _METHODS.value), ("contexts", _CONTEXTS.value), ("dtypes", _DTYPES.value)):
        if not given:
            raise ValueError(f"--{name} is empty: leave it out, or name some with commas between")
    kinds: list[tuple[str, str | None, int]] = []
    for method in _METHODS.value:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        if method == "contsup":
            for context in _CONTEXTS.value:
                read_context(context)
                kinds.extend((method, context, k) for k in modules)
        else:
            kinds.append((method, None, 1))
    ways = [(form, "jax") for form in _FORMS.value] + [(layout, PYTORCH) for layout in _PYTORCH.value]
    if not ways:
        raise ValueError("--forms is empty: leave it out, or name rows in PyTorch with --pytorch")
    return [
        SpeedRow(*kind, form, dtype, framework)
        for kind in kinds
        for form, framework in ways
        for dtype in _DTYPES.value
        if framework != PYTORCH or kind[0] in IN_PYTORCH
    ]


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
