"""The pieces of a step: programs that are compiled together. A piece has one program, or all programs of the step.

No other file compiles programs. Every program owns a part of the state, which is donated. A tensor is freed after its
last reader; on accelerators it is donated to that reader. (The CPU backend copies donated buffers, so there donation
would save nothing.)
"""

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from kd_local.choices.steps import JOINED
from kd_local.contract import Metrics, Program, State, owner, subtree

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Programs that are compiled together: one program, or all programs of the step.

    Attributes:
        programs: the programs in order.
        reads: names of the tensors that the piece reads.
        last: for each of these tensors, True if no later piece reads it.
        writes: names of the tensors that later pieces read.
    """

    programs: tuple[Program, ...]
    reads: tuple[str, ...]
    last: tuple[bool, ...]
    writes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the first program."""
        return self.programs[0].name

    @property
    def key(self) -> Hashable:
        """Pieces with equal keys compute the same function, apart from the shapes of their arguments."""
        inner = tuple((one.reads, one.writes, one.frozen) for one in self.programs) if len(self.programs) > 1 else ()
        return tuple(program.key for program in self.programs), inner, self.last

    @property
    def frozen(self) -> tuple[str, ...]:
        """The paths that the programs read in parts of the state that the piece does not own, in order."""
        own = {program.name for program in self.programs}
        paths = (path for program in self.programs for path in program.frozen if owner(path) not in own)
        return tuple(dict.fromkeys(paths))

    def arguments(
        self, state: State, frozen: Mapping[str, Any], tensors: Tensors, rng: Any, constants: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The arguments of `run`: own parts, frozen subtrees, tensors donated, tensors kept, rng, constants.

        Args:
            state: has the parts that the piece owns.
            frozen: the subtrees of `frozen`, by path.
            tensors: all tensors that exist.
            rng: the key of the step.
            constants: those of each program.
        """
        donated = tuple(tensors[name] for name, last in zip(self.reads, self.last, strict=True) if last)
        kept = tuple(tensors[name] for name, last in zip(self.reads, self.last, strict=True) if not last)
        own = tuple(state[program.name] for program in self.programs)
        return own, tuple(frozen[path] for path in self.frozen), donated, kept, rng, constants

    def run(
        self, own: Any, frozen: Any, donated: Any, kept: Any, rng: Any, constants: Any
    ) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Metrics, ...]]:
        """Runs the programs in order. Returns `(own parts after the step, tensors of `writes`, metrics)`."""
        sources = {True: iter(donated), False: iter(kept)}
        tensors: Tensors = {name: next(sources[last]) for name, last in zip(self.reads, self.last, strict=True)}
        outside = dict(zip(self.frozen, frozen, strict=True))
        parts = dict(zip((program.name for program in self.programs), own, strict=True))
        metrics: list[Metrics] = []
        before: str | None = None
        for program, numbers in zip(self.programs, constants, strict=True):
            read = tuple(tensors[name] for name in program.reads)
            if before is not None:  # the memory of the program before is freed before this one starts
                read, parts[before] = jax.lax.optimization_barrier((read, parts[before]))
            read_only = tuple(outside[path] if path in outside else subtree(parts, path) for path in program.frozen)
            parts[program.name], written, values = program.function(parts[program.name], read_only, read, rng, numbers)
            before = program.name
            metrics.append(values)
            tensors.update(zip(program.writes, written, strict=True))
        return tuple(parts.values()), tuple(tensors[name] for name in self.writes), tuple(metrics)


@dataclass(frozen=True)
class Call:
    """A call of a piece with certain arguments on certain devices.

    Attributes:
        piece: the piece.
        arguments: arrays or their shapes, see `Piece.arguments`.
        live: every tensor that exists when the piece starts, by name.
        mesh: the devices on which the piece runs.
        devices: the number of devices over which the batch is divided; 1 if it is not divided.
        signature: calls with equal signatures share an executable.
        own: a sharding for each array of the piece's parts of the state.
        function: the piece's function on its mesh, to trace.
        jitted: the same, jitted.
        shapes: shapes of the results: own parts, tensors written, metrics.
    """

    piece: Piece
    arguments: tuple[Any, ...]
    live: Tensors
    mesh: Mesh
    devices: int
    signature: Hashable
    own: tuple[Any, ...]
    function: Callable[..., Any]
    jitted: Any
    shapes: tuple[Any, Any, Any]

    def lower(self) -> Any:
        """A `jax.stages.Lowered`."""
        with warnings.catch_warnings():
            # A donated tensor is not used if the piece writes no tensor of the same shape.
            warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
            return self.jitted.lower(*self.arguments)


def compile_lowered(lowered: Any, mesh: Mesh) -> Any:
    """A `jax.stages.Compiled`, with the options of this file."""
    return lowered.compile(compiler_options=_CPU_OPTIONS if on_cpu(mesh) else {})


def extra_names(programs: Sequence[Program]) -> tuple[str, ...]:
    """Names of the extra tensors: programs read them, no program writes them, and they are not images or labels."""
    written = {"images", "labels", *(name for program in programs for name in program.writes)}
    return tuple(dict.fromkeys(name for program in programs for name in program.reads if name not in written))


def pieces_of(programs: Sequence[Program], form: str) -> tuple[Piece, ...]:
    """The pieces of a step, in order; `form` is one of `FORMS`."""
    groups = [tuple(programs)] if form == JOINED else [(program,) for program in programs]
    later: set[str] = set()
    pieces = []
    for group in reversed(groups):
        written = {name for program in group for name in program.writes}
        reads = tuple(dict.fromkeys(name for program in group for name in program.reads if name not in written))
        handed_on = () if form == JOINED else group[0].writes
        pieces.append(Piece(group, reads, tuple(name not in later for name in reads), handed_on))
        later.update(reads)
    return tuple(reversed(pieces))


def free(tensors: Tensors, piece: Piece) -> None:
    """Removes the tensors that no piece after this one reads."""
    for name, last in zip(piece.reads, piece.last, strict=True):
        if last:
            del tensors[name]


def on_cpu(mesh: Mesh) -> bool:
    """True if the devices of the mesh are CPUs."""
    return bool(mesh.devices.flat[0].platform == "cpu")


# Of the libraries that XLA's CPU compiler may call, YNNPACK computes reductions only. With its convolutions, which are
# for 32 channels and more, a step of ResNet-32 takes a tenth longer (JAX 0.10: they use one core; 0.12: the filter
# gradient takes 1.5 times as long). oneDNN, xla_cpu_experimental_onednn_custom_call, would save 6 % in JAX 0.12, but an
# executable that calls it cannot be kept in the compilation cache.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
