"""Measure the memory of training steps: python -m experiments.memory [--config=FILE.py] [--modules=1,2,4,8,16]

The table has rows for end-to-end training with and without rematerialisation, and for local learning in each form,
context and number of modules K. If the config names a teacher, whose weights are not needed, it also has rows for
distillation. Nothing is trained, and no data are read. The program writes memory.csv, memory.jsonl and memory.png after
every row. The same command resumes a table that was interrupted, and compiles nothing twice.
"""

from experiments.ending import ENDING

if __name__ == "__main__":
    ENDING.watch()  # the imports below take seconds

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict
from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail, parse
from experiments.config_flag import define_config, given_keys
from experiments.configs.checks import check_given, check_used
from experiments.folders import workdirs
from experiments.folders.folder_lock import lock_folder
from experiments.from_config.experiment import build
from experiments.memory import table
from experiments.memory.measurements import Measurements
from experiments.memory.rows import (
    BLOCK_KD,
    KD,
    LOCAL_DISTILLATION,
    Row,
    distillation_rows,
    has_teacher,
    in_order_of_effort,
    module_numbers,
    rows_of,
    table_config,
)
from experiments.memory.table import RowFigures, memory_table
from experiments.tables import say
from kd_local.local import Context
from kd_local.memory import TARGETS, Target, target
from kd_local.paths import read_folder
from kd_local.sizes import MIB

_IGNORED = {
    "method": "the table has rows of several methods",
    "seed": "memory does not depend on it",
    **dict.fromkeys(("epochs", "steps", "data.augment", "data.workers"), "nothing is trained"),
    "teacher.cache": "teachers run in each step",
    "checkpoint.": "nothing is trained",
    "distributed.": "leave it out",
    "end_to_end.remat": "the table has a row of it",
    "local.context": "use --contexts",
    "local.decoder": "use --decoders",
    "local.answer": "nothing is trained",
    "local.memory_budget": "the table shows what fits",
    "mesh.data": "use --devices",
    "mesh.module": "the rows are for one group of devices",
}
"""Keys that the rows set, or that nothing here depends on, each with the way out."""
DEFAULT_DISTILLATION = (KD, BLOCK_KD, LOCAL_DISTILLATION)

_CONFIG = define_config()
_MODULES = flags.DEFINE_string(
    "modules", None, "Numbers of modules K. The default is those of 1,2,4,8,16 that the network has blocks for."
)
_CONTEXTS = flags.DEFINE_string("contexts", "R0,E,R1,R1E", "Contexts of local learning.")
_DECODERS = flags.DEFINE_bool("decoders", True, "Add rows of local learning with decoders.")
_DISTILLATION = flags.DEFINE_string(
    "distillation",
    None,
    f"Methods of distillation. The default is {','.join(DEFAULT_DISTILLATION)} if the config names a teacher.",
)
_TARGET = flags.DEFINE_string("target", "local", f"Devices to compile for: {', '.join(TARGETS)} or gpu.")
_DEVICES = flags.DEFINE_integer("devices", 1, "Number of devices over which the batch is divided.")
_MEASURE = flags.DEFINE_bool("measure", None, "Measure real steps too. The default is true for a local target.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the table; by default runs/memory-NETWORK-DATA-batchN-TARGET."
)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        if _TARGET.value.startswith("tpu:"):
            # If libtpu is installed, JAX would look for a TPU.
            jax.config.update("jax_platforms", "cpu")
        # The accelerator's memory is left to the process that runs real steps.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        check_given(given_keys(), _IGNORED)
        base = table_config(_CONFIG.value)
        modules = module_numbers(_MODULES.value, base)
        rows = rows_of(modules, _contexts(_CONTEXTS.value), decoders=_DECODERS.value)
        rows += distillation_rows(_methods(_DISTILLATION.value, base), base)
        on = target(_TARGET.value, devices=_DEVICES.value)
        if base.batch_size % _DEVICES.value:
            raise ValueError(
                f"a batch of {base.batch_size} cannot be divided among {_DEVICES.value} devices: use another "
                "--devices, or --config.batch_size"
            )
        if _MEASURE.value and not on.present:
            raise ValueError(f"--measure: this machine has no {_TARGET.value} to run steps on; leave out --measure")
        check_used(_CONFIG.value, _alternatives(rows))
        _check(_CONFIG.value, rows)
        workdir = _default_workdir(base) if _WORKDIR.value is None else read_folder(_WORKDIR.value, "workdir")
        lock = lock_folder(workdir)
        ENDING.at_end(lock.release)
        workdirs.claim(workdir, base)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()
    ENDING.left = f"saved in {workdir}: the same command resumes from there"
    with lock:
        _make_table(base, rows, on, workdir)


def _make_table(base: ConfigDict, rows: Sequence[Row], on: Target, workdir: Path) -> None:
    """Measures the missing rows and prints the table. Ends the program with an error if a row fails."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    measure = on.present if _MEASURE.value is None else _MEASURE.value
    measurements = Measurements(base, replace(on, name=_TARGET.value), _DEVICES.value, workdir, measure=measure)
    taught = f", taught by {_teachers(base)}" if has_teacher(base) else ""
    title = f"{base.network.name} on {base.data.name}{taught}, batch {base.batch_size}, {_TARGET.value}"
    say(console, f"{len(rows)} rows: {title}, workdir: {workdir}")
    try:
        records, failures = _run_all(measurements, rows, title, console)
    except OSError as error:
        fail(f"{error.strerror or error} ({error.filename or workdir}); the same command resumes from there", 1)
    console.print(memory_table(list(records.values()), title=title))
    count = measurements.compilations.compiled
    say(console, f"{count} executables compiled" if count else "nothing compiled: all executables were known")
    say(console, f"table: {workdir / table.CSV}, {workdir / table.LINES}")
    say(console, f"picture: {workdir / table.PICTURE}")
    if failures:
        listed = "".join(f"\n  {row}: {error}" for row, error in failures.items())
        fail(f"{len(failures)} of {len(rows)} rows failed; the same command tries them again:{listed}", 1)


def _run_all(
    measurements: Measurements, rows: Sequence[Row], title: str, console: Console
) -> tuple[dict[Row, RowFigures], dict[Row, str]]:
    """The records of the rows that succeeded, in the table's order, and the errors of the others."""
    batch = measurements.base.batch_size
    records = table.read(rows, measurements.workdir, target=measurements.on.name, batch=batch)
    failures: dict[Row, str] = {}
    whole: dict[str, Any] | None = None
    kd: dict[str, Any] | None = None
    for number, row in enumerate(in_order_of_effort(rows), start=1):
        which = f"row {number} of {len(rows)}: {row}"
        try:
            measurement = measurements.of(row)
        except OSError:
            raise
        except Exception as error:  # other rows do not depend on this row
            failures[row] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            records.pop(row, None)
            say(console, f"{which}, failed: {failures[row]}")
            if whole is None:
                break  # other rows are compared with this row
            continue
        if measurement.failure:
            failures[row] = measurement.failure
        found = measurement.values
        whole = found if whole is None else whole
        kd = found if row.method == KD else kd
        records[row] = RowFigures(
            method=row.method,
            context=row.context,
            modules=row.modules,
            target=measurements.on.name,
            batch=batch,
            ratio=round(found["peak_bytes"] / whole["peak_bytes"], 4),
            kd_ratio=round(found["peak_bytes"] / kd["peak_bytes"], 4) if row.taught and kd else None,
            flops_ratio=round(found["flops"] / whole["flops"], 4),
            saved_ratio=round(found["saved_bytes"] / whole["saved_bytes"], 4),
            **found,
        )
        records = {row: records[row] for row in rows if row in records}
        table.write(records, measurements.workdir, title=title)
        peak, ratio = found["peak_bytes"] / MIB, records[row].ratio
        say(console, f"{which}, {peak:,.1f} MiB, {ratio:.3f} of end to end")
    return records, failures


def _check(config: ConfigDict, rows: Sequence[Row]) -> None:
    """Builds the config and all rows, so that errors are raised before any compilation. Cuts are not balanced yet.

    Raises:
        ValueError: the config or a row cannot be built.
    """
    build(config, fresh_teachers=has_teacher(config))
    for row in rows:
        build(row.config(table_config(config)), fresh_teachers=True)


def _alternatives(rows: Sequence[Row]) -> dict[str, Sequence[Any]]:
    """What the rows set in place of the config's values."""
    local = [row for row in rows if row.context is not None]
    return {
        "method": ["contsup", "end_to_end", *(row.method for row in rows if row.taught)],
        "local.modules": sorted({row.modules for row in local}) or [1],
        "local.context": sorted({row.context or "R0" for row in local}) or ["R0"],
        "local.decoder": [False, True] if _DECODERS.value else [False],
        "local.memory_budget": [None],
        "mesh.data": [_DEVICES.value],
    }


def _contexts(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        Context.parse(name)
    return names


def _methods(text: str | None, base: ConfigDict) -> tuple[str, ...]:
    """The methods of distillation without repetitions."""
    if text is None:
        return DEFAULT_DISTILLATION if has_teacher(base) else ()
    return tuple(dict.fromkeys(part.strip() for part in text.split(","))) if text.strip() else ()


def _teachers(base: ConfigDict) -> str:
    """The names of the teachers, joined by hyphens."""
    places = base.teacher.network or base.teacher.weights
    return "-".join(Path(place.strip()).stem for place in places.split(","))


def _default_workdir(base: ConfigDict) -> Path:
    words = ["memory", base.network.name, base.data.name, f"batch{base.batch_size}", _TARGET.value.replace(":", "-")]
    if _DEVICES.value > 1:
        words.append(f"{_DEVICES.value}devices")
    if has_teacher(base):
        words.append(_teachers(base))
    return Path("runs") / "-".join(words)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
