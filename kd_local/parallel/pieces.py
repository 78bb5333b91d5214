"""The pieces of a step: programs that are compiled together. A piece has one program, or all programs of the step.

No other file compiles programs. Every program owns a part of the state, which is donated. A tensor is freed after its
last reader; on accelerators it is donated to that reader. (The CPU backend copies donated buffers, so there donation
would save nothing.)
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from kd_local.choices.steps import JOINED
from kd_local.contract import Metrics, Program, State

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
        inner = tuple((program.reads, program.writes) for program in self.programs) if len(self.programs) > 1 else ()
        return tuple(program.key for program in self.programs), inner, self.last

    def arguments(self, state: State, tensors: Tensors, rng: Any, constants: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of `run`: own parts, frozen parts, tensors donated, tensors kept, rng, constants."""
        donated = tuple(tensors[name] for name, last in zip(self.reads, self.last, strict=True) if last)
        kept = tuple(tensors[name] for name, last in zip(self.reads, self.last, strict=True) if not last)
        own = tuple(state[program.name] for program in self.programs)
        frozen = tuple(tuple(state[name] for name in program.frozen) for program in self.programs)
        return own, frozen, donated, kept, rng, constants

    def run(
        self, own: Any, frozen: Any, donated: Any, kept: Any, rng: Any, constants: Any
    ) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Metrics, ...]]:
        """Runs the programs in order. Returns `(own parts after the step, tensors of `writes`, metrics)`."""
        sources = {True: iter(donated), False: iter(kept)}
        tensors: Tensors = {name: next(sources[last]) for name, last in zip(self.reads, self.last, strict=True)}
        parts: list[Any] = []
        metrics: list[Metrics] = []
        for program, part, read_only, numbers in zip(self.programs, own, frozen, constants, strict=True):
            read = tuple(tensors[name] for name in program.reads)
            if parts:  # the memory of the program before is freed before this one starts
                read, parts[-1] = jax.lax.optimization_barrier((read, parts[-1]))
            updated, written, values = program.function(part, read_only, read, rng, numbers)
            parts.append(updated)
            metrics.append(values)
            tensors.update(zip(program.writes, written, strict=True))
        return tuple(parts), tuple(tensors[name] for name in self.writes), tuple(metrics)


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
