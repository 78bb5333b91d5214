"""Executables that were measured, by what was compiled: the same code for the same target is not compiled twice."""

import hashlib
import json
import time
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jaxlib

from kd_local.files import read_json_lines
from kd_local.memory.targets import Target
from kd_local.parallel import Call, compile_lowered


@dataclass(frozen=True)
class Executable:
    """What an executable needs, in bytes of one device, and how long its compilation took, in seconds.

    Attributes:
        flops, moved_bytes: of one device, as the compiler counts them: floating-point operations, and what is read and
            written; None where it does not.
    """

    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    compile_seconds: float
    flops: float | None
    moved_bytes: float | None

    @property
    def step_bytes(self) -> int:
        """Everything that exists for it while it runs."""
        return self.temp_bytes + self.argument_bytes + self.output_bytes - self.alias_bytes


class Executables:
    """Finds out what a piece of a step needs, from memory, from a file, or by compiling it.

    In the file a line stands for an executable, under a digest of its StableHLO code, of its target and of the
    compiler's version: after a change to any of them it is compiled again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.compiled = 0
        self._path = path
        self._by_signature: dict[Hashable, Executable] = {}
        self._by_digest: dict[str, Executable] = {} if path is None else _read(path)

    def of(self, call: Call, target: Target) -> Executable:
        """What the executable of that piece needs."""
        found = self._by_signature.get(call.signature)
        if found is None:
            found = self._by_signature[call.signature] = self._measure(call, target)
        return found

    def _measure(self, call: Call, target: Target) -> Executable:
        lowered = call.lower()
        text = f"{target.name} {target.mesh.devices.shape} {_compiler(target)}\n{lowered.as_text()}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in self._by_digest:
            return self._by_digest[digest]
        start = time.perf_counter()
        compiled = compile_lowered(lowered, target.mesh)
        memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
        found = Executable(
            temp_bytes=memory.temp_size_in_bytes,
            argument_bytes=memory.argument_size_in_bytes,
            output_bytes=memory.output_size_in_bytes,
            alias_bytes=memory.alias_size_in_bytes,
            compile_seconds=round(time.perf_counter() - start, 3),
            flops=costs.get("flops"),
            moved_bytes=costs.get("bytes accessed"),
        )
        self.compiled += 1
        self._by_digest[digest] = found
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"digest": digest, "name": call.piece.name, **asdict(found)}) + "\n")
        return found


def _compiler(target: Target) -> str:
    if target.present:
        return f"{target.mesh.devices.flat[0].device_kind} jaxlib {jaxlib.__version__}"
    try:
        return f"libtpu {version('libtpu')}"
    except PackageNotFoundError:  # as it is where TPU machines bring their own
        return f"libtpu jaxlib {jaxlib.__version__}"


def _read(path: Path) -> dict[str, Executable]:
    known = {}
    for record in read_json_lines(path):
        try:
            digest, _ = record.pop("digest"), record.pop("name")
            known[digest] = Executable(**record)
        except (KeyError, TypeError):
            continue  # of another version: compiled again
    return known
