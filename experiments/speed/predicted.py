"""Predicts the time of each row's step on a TPU from the counts of its compiler. Nothing runs.

An executable takes at least the time of its floating-point operations, and at least that of its memory traffic. The
prediction is the sum of these bounds over the executables of a step, without dispatches.

Reference: Williams et al., "Roofline" (CACM 2009).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.from_config.experiment import build
from experiments.from_config.images import describe_images
from experiments.speed.rows import SCANNED, SpeedRow, configured
from experiments.tables import say, terminal_table
from kd_local.files import replace_text
from kd_local.memory import (
    CompilationRecords,
    Target,
    call_footprint,
    footprint,
    plan_for,
    roofline_seconds,
)
from kd_local.parallel import JOINED
from kd_local.sizes import MIB
from kd_local.training.training_step import lower_call

LINES = "predicted.jsonl"


def predict_all(
    config: ConfigDict, rows: Sequence[SpeedRow], on: Target, steps: int, workdir: Path, console: Console
) -> None:
    """Predicts all rows, prints their table, and writes a line for each to `predicted.jsonl`."""
    records = CompilationRecords(workdir / "executables.jsonl")
    results = []
    for row in rows:
        results.append({**asdict(row), "target": on.name, **predict(row, config, on, steps, records)})
        say(console, f"{row}: {results[-1]['seconds'] * 1e3:.3f} ms predicted")
        replace_text(workdir / LINES, "".join(json.dumps(one) + "\n" for one in results))
    console.print(table(results, f"{config.network.name}, batch {config.batch_size}, {on.name}, predicted"))


def predict(row: SpeedRow, config: ConfigDict, on: Target, steps: int, records: CompilationRecords) -> dict[str, Any]:
    """Predicted seconds of a step, operations, bytes moved, peak bytes and executables."""
    config = configured(row, config)
    experiment = build(config, on.mesh.devices.flat[0].platform, fresh_teachers=True)
    batch, shape = config.batch_size, experiment.shape
    if row.form == SCANNED:
        options = replace(experiment.options, form=JOINED, steps_per_call=steps)
        plan, images = plan_for(experiment.method, shape, batch, on.mesh, options), describe_images(config)
        found = call_footprint(plan, lower_call(plan, images.augmentation, images.train), on, records=records)
    else:
        options = replace(experiment.options, form=row.form)
        found = footprint(experiment.method, shape, batch, on, options=options, records=records)
    compilations = [piece.compilation for piece in found.pieces]
    return {
        # The compiler counts the body of a loop once, so that a call of several steps has the counts of one.
        "seconds": sum(roofline_seconds(one, on) or 0.0 for one in compilations),
        "flops": sum(one.flops or 0 for one in compilations),
        "moved_bytes": sum(one.moved_bytes or 0 for one in compilations),
        "peak_bytes": found.peak_bytes,
        "executables": found.executables,
    }


def table(results: Sequence[dict[str, Any]], title: str) -> Table:
    """The table of all rows."""
    columns = {
        "row": [" ".join(filter(None, [one["method"], one["context"]])) for one in results],
        "K": [str(one["modules"]) for one in results],
        "form": [one["form"] for one in results],
        "dtype": [one["dtype"] for one in results],
        "ms": [f"{one['seconds'] * 1e3:.3f}" for one in results],
        "GFLOP": [f"{one['flops'] / 1e9:.1f}" for one in results],
        "MiB moved": [f"{one['moved_bytes'] / MIB:,.0f}" for one in results],
        "peak MiB": [f"{one['peak_bytes'] / MIB:,.1f}" for one in results],
        "executables": [str(one["executables"]) for one in results],
    }
    caption = (
        "lower bounds of one device: operations and memory traffic as compiled, without dispatches; scanned includes "
        "the augmentation of the images"
    )
    return terminal_table(columns, title=title, left=("row", "form", "dtype"), caption=caption)
