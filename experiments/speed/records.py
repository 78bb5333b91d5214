"""Records of the rows in the folder of the table: compilations and rounds, each by everything that it depends on."""

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from experiments.folders.compilation_cache import VARIABLE
from experiments.speed.rows import PYTORCH, SpeedRow, configured
from kd_local.files import append_json, from_fields, read_json_lines, replace_text

COMPILATIONS, ROUNDS, CACHES = "compilations.jsonl", "rounds.jsonl", "compiled"
_ROOT = Path(__file__).parents[2]
_CODE = (
    "kd_local",
    "experiments/from_config",
    *(f"experiments/speed/{name}.py" for name in ("jax_step", "torch_step", "torch_network")),
)
_SETTINGS = ("XLA_", "JAX_", "LIBTPU_", "CUDA_", "CUDNN_", "NVIDIA_", "TORCH", "OMP_", "MKL_", "GLIBC_TUNABLES")
_NOT_SETTINGS = (VARIABLE, "JAX_PERSISTENT_CACHE", "XLA_PYTHON_CLIENT_")  # which change no time of a step

T = TypeVar("T")


@dataclass(frozen=True)
class Compilation:
    """How a row was compiled.

    Attributes:
        device: the kind of the device.
        compile_seconds: from the building of the method to the compiled step, with nothing compiled before.
        cached_seconds: the same in a new process, with all executables in the cache; None if nothing is cached.
        predicted_bytes: predicted peak of one device; None for PyTorch.
        multiply_adds: multiply-adds of a step's forward passes and gradients; None for PyTorch.
    """

    device: str
    compile_seconds: float
    cached_seconds: float | None
    predicted_bytes: int | None
    multiply_adds: int | None


@dataclass(frozen=True)
class Round:
    """A timed round of a row.

    Attributes:
        name: equal for rounds of several rows that ran in turn, and unique otherwise.
        seconds: of a step.
        host_seconds: of a step, until its dispatch returned.
        measured_bytes: peak memory of the device; None if the platform does not report it.
    """

    name: str
    seconds: float
    host_seconds: float
    measured_bytes: int | None


class Records:
    """Finds and adds the records of rows. A line of a file is a record with the digest of its row.

    Args:
        workdir: the folder of the table.
        config: the config that the rows change.
        steps: steps of a round, and of a call of the form scanned.
    """

    def __init__(self, workdir: Path, config: ConfigDict, steps: int) -> None:
        self._workdir, self._config, self._steps = workdir, config, steps
        self._digests: dict[SpeedRow, str] = {}
        self._compilations = dict(_read(workdir / COMPILATIONS, Compilation))
        self._rounds: dict[str, list[Round]] = {}
        for digest, record in _read(workdir / ROUNDS, Round):
            self._rounds.setdefault(digest, []).append(record)

    def compilation(self, row: SpeedRow) -> Compilation | None:
        """The record of a row's compilation; None if it was not compiled."""
        return self._compilations.get(self.digest(row))

    def rounds(self, row: SpeedRow) -> list[Round]:
        """All rounds of a row, the oldest first."""
        return self._rounds.get(self.digest(row), [])

    def seconds(self, row: SpeedRow) -> float:
        """The median seconds of a step of a row with rounds."""
        return statistics.median(one.seconds for one in self.rounds(row))

    def flops(self, row: SpeedRow) -> float | None:
        """Floating-point operations a second of a row with rounds; None if its multiply-adds are not known."""
        compilation = self.compilation(row)
        work = None if compilation is None else compilation.multiply_adds
        return 2 * work / self.seconds(row) if work else None

    def cache(self, row: SpeedRow) -> Path:
        """The folder with the executables of a row."""
        return self._caches / self.digest(row)[:16]

    def delete_caches_of_other_code(self) -> None:
        """Deletes the executables of other versions of the code, which nothing uses again."""
        for folder in (self._workdir / CACHES).glob("*"):
            if folder != self._caches:
                shutil.rmtree(folder, ignore_errors=True)

    def log(self, row: SpeedRow) -> Path:
        """The file of what a row's process writes on standard error."""
        return self._workdir / (str(row).replace(" ", "-") + ".log")

    def add_compilation(self, row: SpeedRow, record: Compilation) -> None:
        """Adds the record of a compilation, or replaces it."""
        self._append(COMPILATIONS, row, record)
        self._compilations[self.digest(row)] = record

    def add_round(self, row: SpeedRow, record: Round) -> None:
        """Adds a round of a row."""
        self._append(ROUNDS, row, record)
        self._rounds.setdefault(self.digest(row), []).append(record)

    def forget(self, rows: Collection[SpeedRow]) -> None:
        """Removes the records of rows, so that they are compiled and timed again."""
        digests = {self.digest(row) for row in rows}
        for name in (COMPILATIONS, ROUNDS):
            lines = read_json_lines(self._workdir / name, dict)
            kept = [line for line in lines if line.get("digest") not in digests]
            replace_text(self._workdir / name, "".join(json.dumps(line) + "\n" for line in kept))
        for digest in digests:
            self._compilations.pop(digest, None)
            self._rounds.pop(digest, None)

    def digest(self, row: SpeedRow) -> str:
        """A digest of everything that the times of a row depend on."""
        if row not in self._digests:
            known = [asdict(row), configured(row, self._config).to_dict(), self._steps, self.surroundings]
            text = json.dumps([*known, _version("torch") if row.framework == PYTORCH else None], sort_keys=True)
            self._digests[row] = hashlib.sha256(text.encode()).hexdigest()
        return self._digests[row]

    @cached_property
    def surroundings(self) -> dict[str, Any]:
        """The device, the processor, the versions, the settings of the environment, and a digest of the code."""
        return {
            "device": jax.devices()[0].device_kind,
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            **{name: _version(name) for name in ("jax", "jaxlib", "flax", "optax")},
            "settings": {
                name: value
                for name, value in os.environ.items()
                if name.startswith(_SETTINGS) and not name.startswith(_NOT_SETTINGS)
            },
            "code": _digest_of_code(),
        }

    @property
    def _caches(self) -> Path:
        return self._workdir / CACHES / self.surroundings["code"][:16]

    def _append(self, name: str, row: SpeedRow, record: Any) -> None:
        append_json(self._workdir / name, {"digest": self.digest(row), "row": str(row), **asdict(record)})


def _read(path: Path, kind: type[T]) -> list[tuple[str, T]]:
    """`(digest, record)` of each line. A line that is damaged or of another version is left out."""

    def parse(values: dict[str, Any]) -> tuple[str, T]:
        digest, _ = str(values.pop("digest")), values.pop("row")
        return digest, from_fields(kind, values)

    return read_json_lines(path, parse)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _digest_of_code() -> str:
    found = hashlib.sha256()
    for place in _CODE:
        path = _ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(f"{file.relative_to(_ROOT)} ".encode() + file.read_bytes())
    return found.hexdigest()
