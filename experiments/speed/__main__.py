"""Time training steps: python -m experiments.speed --config=FILE.py [--methods=end_to_end,contsup] [--contexts=R0,R1E]

A row is a method, a context, a form of the step and a precision. --pytorch=nchw,channels_last adds rows for the same
steps in PyTorch. Every row has its own process. The rounds of all rows are interleaved, and one row runs at a time. The
program prints a table and writes speed.jsonl, with a line per row, to the working directory.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # the imports below take seconds

import json
import re
import selectors
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.command_line import USAGE_STATUS, fail, numbers, parse
from experiments.config_flag import define_config, given_keys
from experiments.configs.checks import check_given, check_used
from experiments.folders.folder_lock import lock_folder
from experiments.from_config.experiment import build
from experiments.speed.jax_step import configured
from experiments.speed.processes import RowProcess
from experiments.speed.rows import DTYPES, FORMS, LAYOUTS, PYTORCH, SpeedRow
from experiments.tables import say, terminal_table
from kd_local.files import replace_text
from kd_local.local.contexts import Context
from kd_local.paths import read_folder
from kd_local.sizes import MIB

LINES = "speed.jsonl"
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
_PYTORCH = flags.DEFINE_list("pytorch", [], f"Rows in PyTorch: {', '.join(LAYOUTS)}; +compile may follow.")
_STEPS = flags.DEFINE_integer("steps", 50, "Steps of a round, and of a call of the form scanned.", 1, 100_000)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of timed rounds of each row.", 1, 10_000)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Number of rows that compile at once.", 1, 256)
_SECONDS = flags.DEFINE_float("seconds", 3600.0, "Time limit; rows that compile longer are left out.", 0, 1e7)
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a trace of each row's last round, for TensorBoard.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/speed", "Folder of the results.")


def main(_: list[str]) -> None:
    try:
        config = _CONFIG.value
        modules = str(config.local.modules) if _MODULES.value is None else _MODULES.value
        if not _SECONDS.value >= 0:
            raise ValueError(f"--seconds={_SECONDS.value}: use a number from 0 to 1e7")
        rows = rows_of(numbers("modules", modules, example="4,16", lowest=1))
        check_given(given_keys(), _IGNORED)
        check_used(config, _alternatives(rows))
        check_ignored(config)
        for row in {row.work: row for row in rows}.values():
            build(configured(row, config), fresh_teachers=True)
        workdir = read_folder(_WORKDIR.value, "workdir")
        profiles = None if _PROFILE.value is None else read_folder(_PROFILE.value, "profile")
        ENDING.at_end(lock_folder(workdir).release)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()
    console = Console()
    request = {"config": config.to_dict(), "steps": _STEPS.value}
    ready = compiled_rows(rows, request, workdir, console)
    for number in range(_ROUNDS.value):
        for each in ready:
            last = number == _ROUNDS.value - 1
            each.ask({"profile": str(profiles / str(each.row).replace(" ", "-")) if profiles and last else None})
            if (answer := each.answer()) is None:
                say(console, f"{each.row}: {each.error()}")
                ready = [other for other in ready if other is not each]
            else:
                each.rounds.append(answer)
    results = [figures(each) for each in ready]
    for each in ready:
        each.process.terminate()
    common = {"network": config.network.name, "batch": config.batch_size, "steps": _STEPS.value, "jax": jax.__version__}
    replace_text(workdir / LINES, "".join(json.dumps({**one, **common}) + "\n" for one in results))
    console.print(table(results, f"{config.network.name}, batch {config.batch_size}", config.batch_size))
    if len(results) < len(rows):
        fail(f"{len(rows) - len(results)} of {len(rows)} rows failed or were late, see above", 1)


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
        ("step", "separate", "name the forms with --forms"),
        ("network.dtype", "float32", "name the precisions with --dtypes"),
        ("mesh.data", 1, "python -m experiments.pipeline times several devices"),
        ("mesh.module", 1, "python -m experiments.pipeline times several devices"),
    ):
        if (value := config[key] if "." not in key else config[key.split(".")[0]][key.split(".")[1]]) != fixed:
            raise ValueError(f"{key} is {value}, which the rows would ignore: leave it at {fixed}; {way_out}")
    if not _PYTORCH.value:
        return
    if find_spec("torch") is None:
        raise ModuleNotFoundError("rows in PyTorch need torch: pip install torch, or leave out --pytorch")
    if unknown_there := [method for method in _METHODS.value if method not in IN_PYTORCH]:
        raise ValueError(
            f"{unknown_there[0]} has no step in PyTorch: use {', '.join(IN_PYTORCH)}, or leave out --pytorch"
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
        if method == "contsup":
            for context in _CONTEXTS.value:
                Context.parse(context)
                kinds.extend((method, context, k) for k in modules)
        else:
            kinds.append((method, None, 1))
    ways = [(form, "jax") for form in _FORMS.value] + [(layout, PYTORCH) for layout in _PYTORCH.value]
    if not ways:
        raise ValueError("--forms is empty: leave it out, or name rows in PyTorch with --pytorch")
    return [
        SpeedRow(*kind, form, dtype, framework) for kind in kinds for form, framework in ways for dtype in _DTYPES.value
    ]


def compiled_rows(
    rows: Sequence[SpeedRow], request: dict[str, Any], workdir: Path, console: Console
) -> list[RowProcess]:
    """The processes of the rows after compilation. Rows that fail or exceed the limit are reported and left out."""
    waiting, ready, running = list(rows), [], selectors.DefaultSelector()
    deadline = time.perf_counter() + _SECONDS.value
    count = 0
    while waiting or count:
        while waiting and count < _PROCESSES.value:
            row = waiting.pop(0)
            log = workdir / (str(row).replace(" ", "-") + ".log")
            each = RowProcess(row, {**request, "row": asdict(row)}, log, 0.75 / len(rows))
            running.register(each.process.stdout, selectors.EVENT_READ, each)  # type: ignore[arg-type]
            count += 1
        found = running.select(max(0.0, deadline - time.perf_counter()))
        if not found:
            late = [key.data for key in running.get_map().values()]
            for each in late:
                each.process.kill()
            names = ", ".join(str(row) for row in [*(each.row for each in late), *waiting])
            say(console, f"not compiled within {_SECONDS.value:.0f} s: {names}")
            break
        for key, _ in found:
            each = key.data
            running.unregister(key.fileobj)
            count -= 1
            known = each.answer()
            if known is None:
                say(console, f"{each.row}: {each.error()}")
                continue
            each.known = {**known, "start_seconds": time.perf_counter() - each.started}
            ready.append(each)
            say(console, f"{each.row}: compiled in {known['compile_seconds']:.1f} s")
    return sorted(ready, key=lambda each: rows.index(each.row))


def figures(each: RowProcess) -> dict[str, Any]:
    """The figures of a row. Times are seconds per step."""
    seconds = [one["seconds"] / _STEPS.value for one in each.rounds]
    return {
        **asdict(each.row),
        **each.known,
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "rounds": len(seconds),
        "host_seconds": statistics.median(one["host_seconds"] / _STEPS.value for one in each.rounds),
        "measured_bytes": each.rounds[-1]["measured_bytes"],
    }


def table(results: Sequence[dict[str, Any]], title: str, batch: int) -> Table:
    """The table of all rows. Ratios are ratios of medians."""

    def ratio(one: dict[str, Any], **other: Any) -> str:
        wanted = [r["seconds"] for r in results if all(r[name] == value for name, value in other.items())]
        return f"{one['seconds'] / min(wanted):.2f}" if wanted else ""

    def mib(one: dict[str, Any], name: str) -> str:
        return "" if one[name] is None else f"{one[name] / MIB:.1f}"

    same = ("method", "context", "modules", "dtype")
    columns = {
        "row": [" ".join(filter(None, [one["method"], one["context"]])) for one in results],
        "K": [str(one["modules"]) for one in results],
        "form": [one["form"] if one["framework"] == "jax" else f"{PYTORCH} {one['form']}" for one in results],
        "dtype": [one["dtype"] for one in results],
        "ms": [f"{one['seconds'] * 1e3:.3f}" for one in results],
        "least": [f"{one['least'] * 1e3:.3f}" for one in results],
        "most": [f"{one['most'] * 1e3:.3f}" for one in results],
        "host ms": [f"{one['host_seconds'] * 1e3:.3f}" for one in results],
        "images a second": [f"{batch / one['seconds']:,.0f}" for one in results],
        "of end to end": [
            ratio(one, method="end_to_end", form=one["form"], dtype=one["dtype"], framework=one["framework"])
            for one in results
        ],
        "of PyTorch": [ratio(one, framework=PYTORCH, **{name: one[name] for name in same}) for one in results],
        "TFLOP/s": [
            f"{2 * one['multiply_adds'] / one['seconds'] / 1e12:.2f}" if one["multiply_adds"] else "" for one in results
        ],
        "predicted MiB": [mib(one, "predicted_bytes") for one in results],
        "measured MiB": [mib(one, "measured_bytes") for one in results],
        "compile s": [f"{one['compile_seconds']:.1f}" for one in results],
    }
    caption = "of end to end: in the same form and precision; of PyTorch: of the faster layout in the same precision"
    return terminal_table(columns, title=title, left=("row", "form", "dtype"), caption=caption)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
