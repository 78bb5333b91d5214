"""Measures the rows of the memory table and prints it."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from experiments.command_line import USAGE_STATUS, fail
from experiments.ending import ENDING
from experiments.folders import workdirs
from experiments.folders.folder_lock import lock_folder
from experiments.from_config.experiment import build
from experiments.memory import table
from experiments.memory.built_rows import default_modules
from experiments.memory.measurements import Measurements
from experiments.memory.rows import (
    KD,
    Row,
    has_teacher,
    in_order_of_effort,
    names_of_teachers,
    rows_of,
    table_config,
)
from experiments.memory.table import RowFigures, memory_table
from experiments.tables import say
from kd_local.choices.steps import TARGETS
from kd_local.memory import Target, target
from kd_local.sizes import MIB


@dataclass(frozen=True)
class Selection:
    """The choice of rows and of devices.

    Attributes:
        modules: numbers of modules K; None: those of 1, 2, 4, 8 and 16 that the network has blocks for.
        contexts: contexts of local learning.
        auxiliaries: auxiliary networks that have rows of their own.
        pairs: methods of pairs of modules that have rows.
        methods: methods of distillation.
        decoders: True for rows with decoders.
        target: the devices to compile for, see `kd_local.memory.target`.
        devices: the number of devices over which the batch is divided.
        measure: True to measure real steps too; None: if the target is local.
    """

    modules: Sequence[int] | None
    contexts: Sequence[str]
    auxiliaries: Sequence[str]
    pairs: Sequence[str]
    methods: Sequence[str]
    decoders: bool
    target: str
    devices: int
    measure: bool | None


def run(config: ConfigDict, selection: Selection, workdir: Path) -> None:
    """Measures the rows that are missing in the folder, and ends the program with an error if one fails."""
    if selection.target != TARGETS[0]:
        # If a plugin of JAX is installed, JAX would look for its devices.
        jax.config.update("jax_platforms", "cpu")
    # The accelerator's memory is left to the process that runs real steps.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        base = table_config(config)
        modules = default_modules(base) if selection.modules is None else selection.modules
        on = target(selection.target, devices=selection.devices)
        scanned = base.steps_per_call is not None or on.mesh.devices.flat[0].platform != "cpu"
        rows = rows_of(
            modules,
            selection.contexts,
            decoders=selection.decoders,
            scanned=scanned,
            auxiliaries=selection.auxiliaries,
            pairs=selection.pairs,
        )
        rows += map(Row, selection.methods)
        if selection.measure and not on.present:
            raise ValueError(f"--measure: this machine has no {selection.target} to run steps on; leave out --measure")
        _check(config, rows)
        lock = lock_folder(workdir)
        ENDING.at_end(lock.release)
        workdirs.claim(workdir, base)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        fail(error, USAGE_STATUS)
    ENDING.arm()
    ENDING.left = f"saved in {workdir}: the same command resumes from there"
    with lock:
        _make_table(base, rows, on, selection, workdir)


def _make_table(base: ConfigDict, rows: Sequence[Row], on: Target, selection: Selection, workdir: Path) -> None:
    """Measures the missing rows and prints the table. Ends the program with an error if a row fails."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    measure = on.present if selection.measure is None else selection.measure
    measurements = Measurements(base, replace(on, name=selection.target), selection.devices, workdir, measure=measure)
    taught = f", taught by {names_of_teachers(base)}" if has_teacher(base) else ""
    title = f"{base.network.name} on {base.data.name}{taught}, batch {base.batch_size}, {selection.target}"
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
            auxiliary=row.auxiliary,
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
