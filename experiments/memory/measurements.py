"""Measures the rows of the memory table. A measurement is taken once and stored in the folder of the table."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.folders.compilation_cache import VARIABLE
from experiments.from_config.images import describe_images
from experiments.from_config.planning import left_to_measurement, planned
from experiments.memory.built_rows import BuiltRow, build_row
from experiments.memory.observed import ObservationError, observe
from experiments.memory.rows import SCANNED, Row
from kd_local.costs import multiply_adds
from kd_local.files import append_json, read_json_lines
from kd_local.memory import (
    CompilationRecords,
    Target,
    call_footprint,
    floor_bytes,
    footprint,
    own_activations,
    plan_for,
    saved_activations,
)
from kd_local.training.training_step import lower_call

EXECUTABLES = "executables.jsonl"
MEASURED = "measured.jsonl"


@dataclass(frozen=True)
class Measurement:
    """The absolute figures of a row.

    Attributes:
        values: the values of the row's record by field name, without ratios.
        failure: the reason why real steps could not be measured; None if they were measured, or were not requested.
    """

    values: dict[str, Any]
    failure: str | None


class Measurements:
    """Measures rows: each footprint is compiled once and each peak is observed once.

    Attributes:
        base: the config that each row changes.
        compilations: the records of all known compilations.
    """

    def __init__(self, base: ConfigDict, on: Target, devices: int, workdir: Path, *, measure: bool) -> None:
        self.base = base
        self.workdir = workdir
        self.compilations = CompilationRecords(workdir / EXECUTABLES)
        self.on = on
        self._devices = devices
        self._known: dict[str, Measurement] = {}
        # As in training, the process allocates an accelerator's memory at once. Gaps between arrays would count.
        at_once = {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}
        self._environment = {**_compilation_cache(workdir), **at_once} if measure else None
        self._measured = workdir / MEASURED
        if self._environment is not None:
            # The process that runs real steps finds the compiled code in this cache.
            jax.config.update("jax_compilation_cache_dir", self._environment[VARIABLE])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    def of(self, row: Row) -> Measurement:
        """The measurement of a row. Rows with the same computation share a measurement."""
        identity = row.identity(self.base)
        if identity not in self._known:
            self._known[identity] = self._measure(row, identity)
        return self._known[identity]

    def _measure(self, row: Row, identity: str) -> Measurement:
        base = self._planned(row, identity)
        built = build_row(row, base, self.on.mesh.devices.flat[0].platform)
        batch, options = base.batch_size, built.options
        if options.steps_per_call > 1:
            plan, images = plan_for(built.method, built.shape, batch, self.on.mesh, options), describe_images(base)
            call = lower_call(plan, images.augmentation, images.train)
            found = call_footprint(plan, call, self.on, records=self.compilations)
        else:
            found = footprint(built.method, built.shape, batch, self.on, options=options, records=self.compilations)
        own = own_activations(built.network, built.shape, batch // self._devices)
        smallest = {name: min(own[block] for block in blocks) for name, blocks in built.blocks.items()}
        saved = saved_activations(built.method, built.shape, batch // self._devices)
        measured, failure = self._observe(row, base, identity, found.peak_bytes)
        values = {
            "boundaries": built.boundaries,
            "peak_bytes": found.peak_bytes,
            "state_bytes": found.state_bytes,
            "carried_bytes": found.carried_bytes,
            "temp_bytes": found.temp_bytes,
            "floor_bytes": floor_bytes(built.separate, built.shape, batch, self.on, smallest, options=options),
            "flops": found.flops,
            "deployed_multiply_adds": _deployed(built),
            "executables": found.executables,
            "compile_seconds": round(found.compile_seconds, 3),
            "saved_bytes": max(saved.values()),
            "measured_bytes": measured,
            "largest": found.largest.name,
        }
        return Measurement(values, failure)

    def _planned(self, row: Row, identity: str) -> ConfigDict:
        """The config that the row changes, with balanced boundaries by name."""
        config = row.config(self.base)
        if not left_to_measurement(config):
            return self.base
        plan = self.workdir / "plans" / hashlib.sha256(identity.encode()).hexdigest()[:16]
        plan.mkdir(parents=True, exist_ok=True)
        decided = planned(config, plan, on=self.on, records=self.compilations, report=lambda _: None)
        base = self.base.copy_and_resolve_references()
        with base.unlocked():
            base.local.boundaries = decided.local.boundaries
        return base

    def _observe(self, row: Row, base: ConfigDict, identity: str, predicted: int) -> tuple[int | None, str | None]:
        if self._environment is None or row.method == SCANNED:  # whose steps need the images
            return None, None
        # The predicted peak identifies the step: if it has changed, the step has changed.
        text = json.dumps([identity, self._devices, jax.__version__, jax.devices()[0].device_kind, predicted])
        digest = hashlib.sha256(text.encode()).hexdigest()
        known = dict(read_json_lines(self._measured, lambda line: (str(line["digest"]), int(line["measured_bytes"]))))
        if digest in known:
            return known[digest], None
        try:
            measured = observe(row, base, devices=self._devices, environment=self._environment)
        except ObservationError as error:
            return None, f"its steps could not be measured: {error}"
        if measured is not None:
            append_json(self._measured, {"digest": digest, "row": str(row), "measured_bytes": measured})
        return measured, None


def _deployed(built: BuiltRow) -> int:
    """The multiply-adds of the deployed network for one image."""
    images = jax.ShapeDtypeStruct((1, *built.shape), jnp.float32)
    state = jax.eval_shape(built.separate.init, jax.random.key(0), images)
    return multiply_adds(built.separate.logits, state, images)


def _compilation_cache(workdir: Path) -> dict[str, str]:
    """The environment of processes that share compiled steps in the folder of the table.

    The table has compilation times, so that it does not use what other programs have compiled.
    """
    return {
        VARIABLE: str(workdir.absolute() / ".jax-cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
    }
