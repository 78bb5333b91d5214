"""What a row of the memory table needs, found out once and kept in the table's folder."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.memory_observed import ObservationError, observe
from experiments.memory_rows import Row, describe
from experiments.planning import left_to_measurement, planned
from experiments.row_process import compilation_cache
from kd_local.files import read_json_lines
from kd_local.memory import CompilationRecords, Target, floor_bytes, footprint, own_activations, saved_activations

EXECUTABLES = "executables.jsonl"
MEASURED = "measured.jsonl"


@dataclass(frozen=True)
class Need:
    """A row's record, but for what is relative to end to end."""

    absolute: dict[str, Any]
    trouble: str | None


class Bench:
    """Finds out what rows need, each thing once.

    Attributes:
        base: the config that rows are put into.
        compilations: records of those that are known.
    """

    def __init__(self, base: ConfigDict, on: Target, devices: int, workdir: Path, *, measure: bool) -> None:
        self.base = base
        self.workdir = workdir
        self.compilations = CompilationRecords(workdir / EXECUTABLES)
        self.on = on
        self._devices = devices
        self._known: dict[str, Need] = {}
        # An accelerator's memory is taken at once there, as in training: taken piece by piece it has gaps, which count.
        at_once = {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}
        self._environment = {**compilation_cache(workdir), **at_once} if measure else None
        self._measured = workdir / MEASURED
        if self._environment is not None:
            # What is compiled here is not compiled again by the process that runs it.
            jax.config.update("jax_compilation_cache_dir", self._environment["JAX_COMPILATION_CACHE_DIR"])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    def need(self, row: Row) -> Need:
        """What a row needs, and why it could not be measured, if so."""
        identity = row.identity(self.base)
        if identity not in self._known:
            self._known[identity] = self._find_out(row, identity)
        return self._known[identity]

    def _find_out(self, row: Row, identity: str) -> Need:
        base = self._planned(row, identity)
        described = describe(row, base, self.on.mesh.devices.flat[0].platform)
        batch, shard = base.batch_size, base.mesh.shard
        found = footprint(
            described.method,
            described.shape,
            batch,
            self.on,
            form=row.form,
            shard=shard,
            batch_norm=base.mesh.batch_norm,
            records=self.compilations,
        )
        own = own_activations(described.network, described.shape, batch // self._devices)
        smallest = {name: min(own[block] for block in blocks) for name, blocks in described.blocks.items()}
        saved = saved_activations(described.method, described.shape, batch // self._devices)
        measured, trouble = self._measure(row, base, identity, found.peak_bytes)
        absolute = {
            "boundaries": described.boundaries,
            "peak_bytes": found.peak_bytes,
            "state_bytes": found.state_bytes,
            "carried_bytes": found.carried_bytes,
            "temp_bytes": found.temp_bytes,
            "floor_bytes": floor_bytes(described.separate, described.shape, batch, self.on, smallest, shard=shard),
            "flops": found.flops,
            "executables": found.executables,
            "compile_seconds": round(found.compile_seconds, 3),
            "saved_bytes": max(saved.values()),
            "measured_bytes": measured,
            "largest": found.largest.name,
        }
        return Need(absolute, trouble)

    def _planned(self, row: Row, identity: str) -> ConfigDict:
        """The config that the row is put into, its boundaries balanced if they are to be."""
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

    def _measure(self, row: Row, base: ConfigDict, identity: str, foretold: int) -> tuple[int | None, str | None]:
        if self._environment is None:
            return None, None
        # Where something else is foretold, something else runs.
        text = json.dumps([identity, self._devices, jax.__version__, jax.devices()[0].device_kind, foretold])
        digest = hashlib.sha256(text.encode()).hexdigest()
        known = {record["digest"]: record["measured_bytes"] for record in read_json_lines(self._measured)}
        if digest in known:
            return known[digest], None
        try:
            measured = observe(row, base, devices=self._devices, environment=self._environment)
        except ObservationError as error:
            return None, f"its steps could not be measured: {error}"
        if measured is not None:
            with self._measured.open("a") as file:
                file.write(json.dumps({"digest": digest, "row": str(row), "measured_bytes": measured}) + "\n")
        return measured, None
