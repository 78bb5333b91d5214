"""Records of compilations by the compiled code, so that the same code is compiled once for a target."""

import hashlib
import time
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jaxlib

from kd_local.files import append_json, from_fields, read_json_lines
from kd_local.memory.targets import Target
from kd_local.parallel import Call, compile_lowered


@dataclass(frozen=True)
class CompilationRecord:
    """The compiler's report on an executable. Sizes are bytes of one device.

    Attributes:
        temp_bytes: temporary memory.
        argument_bytes, output_bytes: arguments and results.
        alias_bytes: the part of the results that is written into donated arguments.
        compile_seconds: duration of the compilation.
        flops: floating-point operations of one device; None if the compiler does not count them.
        moved_bytes: bytes that one device reads and writes; None if the compiler does not count them.
    """

    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    compile_seconds: float
    flops: float | None
    moved_bytes: float | None

    @classmethod
    def of_executable(cls, compiled: Any, compile_seconds: float = 0.0) -> "CompilationRecord":
        """The record of a `jax.stages.Compiled`."""
        memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
        return cls(
            temp_bytes=memory.temp_size_in_bytes,
            argument_bytes=memory.argument_size_in_bytes,
            output_bytes=memory.output_size_in_bytes,
            alias_bytes=memory.alias_size_in_bytes,
            compile_seconds=compile_seconds,
            flops=costs.get("flops"),
            moved_bytes=costs.get("bytes accessed"),
        )

    @property
    def step_bytes(self) -> int:
        """Bytes of all arrays that exist for the executable while it runs."""
        return self.temp_bytes + self.argument_bytes + self.output_bytes - self.alias_bytes


class CompilationRecords:
    """Finds the record of a piece of a step: in memory, in a file, or by compiling the piece.

    A line of the file is a record with a digest of its StableHLO code, its target and the version of the compiler.
    Code is compiled again after a change to any of the three.

    Args:
        path: the file, to which new records are appended; None keeps them in memory only.

    Attributes:
        compiled: number of pieces that were compiled because they had no record.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.compiled = 0
        self._path = path
        self._by_signature: dict[Hashable, CompilationRecord] = {}
        self._by_digest: dict[str, CompilationRecord] = {} if path is None else _read(path)

    def of(self, call: Call, target: Target) -> CompilationRecord:
        """The record of a piece. The piece is compiled if it has no record."""
        found = self._by_signature.get(call.signature)
        if found is None:
            found = self._by_signature[call.signature] = self.of_lowered(call.piece.name, call.lower(), target)
        return found

    def of_lowered(self, name: str, lowered: Any, target: Target) -> CompilationRecord:
        """The record of a `jax.stages.Lowered`. It is compiled if it has no record.

        Args:
            name: a name for people who read the file.
            lowered: the code to compile.
            target: the devices to compile for.
        """
        text = f"{target.name} {target.mesh.devices.shape} {_compiler(target)}\n{lowered.as_text()}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in self._by_digest:
            return self._by_digest[digest]
        start = time.perf_counter()
        compiled = compile_lowered(lowered, target.mesh)
        found = CompilationRecord.of_executable(compiled, round(time.perf_counter() - start, 3))
        self.compiled += 1
        self._by_digest[digest] = found
        if self._path is not None:
            append_json(self._path, {"digest": digest, "name": name, **asdict(found)})
        return found


def _compiler(target: Target) -> str:
    if target.present:
        return f"{target.mesh.devices.flat[0].device_kind} jaxlib {jaxlib.__version__}"
    if target.name.startswith("gpu:"):
        return f"jaxlib {jaxlib.__version__} with CUDA"
    try:
        return f"libtpu {version('libtpu')}"
    except PackageNotFoundError:  # the libtpu of a TPU machine may have no metadata
        return f"libtpu jaxlib {jaxlib.__version__}"


def _read(path: Path) -> dict[str, CompilationRecord]:
    """The records by digest; a line that is damaged or of another version is compiled again."""

    def parse(values: dict[str, Any]) -> tuple[str, CompilationRecord]:
        digest, _ = str(values.pop("digest")), values.pop("name")
        return digest, from_fields(CompilationRecord, values)

    return dict(read_json_lines(path, parse))
