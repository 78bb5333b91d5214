"""Pieces of a step, which are compiled together: each program by itself, or all of them.

This is the one place where programs of any method are compiled. Every program owns a part of the state, which is
donated. A tensor is freed after its last reader; on accelerators it is donated to that reader. (The CPU backend copies
donated buffers, so there it would save nothing.)
"""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from kd_local.contract import Metrics, Program, State

FORMS: tuple[str, ...] = ("separate", "joined")
"""`separate`: an executable for each program; programs that compute the same function on the same shapes share one.
`joined`: one executable for the whole step, in which optimization barriers keep the order of the programs."""

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Programs that are compiled together: one of them, or all.

    Attributes:
        programs: in order.
        reads: names of the tensors handed to it.
        last: for each of these, whether nothing reads it afterwards.
        writes: names of the tensors that it hands on.
    """

    programs: tuple[Program, ...]
    reads: tuple[str, ...]
    last: tuple[bool, ...]
    writes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its first program."""
        return self.programs[0].name

    @property
    def key(self) -> Hashable:
        """What its function depends on besides the shapes of its arguments."""
        inner = tuple((program.reads, program.writes) for program in self.programs) if len(self.programs) > 1 else ()
        return tuple(program.key for program in self.programs), inner, self.last

    def arguments(self, state: State, tensors: Tensors, rng: Any, constants: tuple[Any, ...]) -> tuple[Any, ...]:
        """Own parts, frozen parts, tensors donated, tensors kept, rng, constants."""
        donated = tuple(tensors[name] for name, last in zip(self.reads, self.last, strict=True) if last)
        kept = tuple(tensors[name] for name, last in zip(self.reads, self.last, strict=True) if not last)
        own = tuple(state[program.name] for program in self.programs)
        frozen = tuple(tuple(state[name] for name in program.frozen) for program in self.programs)
        return own, frozen, donated, kept, rng, constants

    def run(
        self, own: Any, frozen: Any, donated: Any, kept: Any, rng: Any, constants: Any
    ) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Metrics, ...]]:
        """Its programs in order: their parts afterwards, the tensors of `writes`, their metrics."""
        sources = {True: iter(donated), False: iter(kept)}
        tensors: Tensors = {name: next(sources[last]) for name, last in zip(self.reads, self.last, strict=True)}
        parts: list[Any] = []
        metrics: list[Metrics] = []
        for program, part, read_only, numbers in zip(self.programs, own, frozen, constants, strict=True):
            read = tuple(tensors[name] for name in program.reads)
            if parts:  # what the program before needed is freed before this one starts
                read, parts[-1] = jax.lax.optimization_barrier((read, parts[-1]))
            updated, written, values = program.function(part, read_only, read, rng, numbers)
            parts.append(updated)
            metrics.append(values)
            tensors.update(zip(program.writes, written, strict=True))
        return tuple(parts), tuple(tensors[name] for name in self.writes), tuple(metrics)


@dataclass(frozen=True)
class Call:
    """A piece with what it is compiled for.

    Attributes:
        arguments: arrays or their shapes, see `Piece.arguments`.
        live: every tensor that exists when the piece starts, by name.
        mesh: the devices that it runs on.
        devices: among which the batch is divided; 1 if it is not.
        signature: calls of one signature share an executable.
        own: a sharding for each array of the parts of the state that it owns.
        jitted: the piece on its mesh.
        shapes: of what it gives: own parts, tensors written, metrics.
    """

    piece: Piece
    arguments: tuple[Any, ...]
    live: Tensors
    mesh: Mesh
    devices: int
    signature: Hashable
    own: tuple[Any, ...]
    jitted: Any
    shapes: tuple[Any, Any, Any]

    def lower(self) -> Any:
        """A `jax.stages.Lowered`."""
        with warnings.catch_warnings():
            # A tensor at its last reader is of no use where nothing of its shape is written.
            warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
            return self.jitted.lower(*self.arguments)


def compile_lowered(lowered: Any, mesh: Mesh) -> Any:
    """A `jax.stages.Compiled`, compiled as everything here is."""
    return lowered.compile(compiler_options=_cpu_options() if on_cpu(mesh) else {})


def extra_names(programs: Sequence[Program]) -> tuple[str, ...]:
    """Names of the tensors that programs read besides images and labels, and that no program writes."""
    written = {"images", "labels", *(name for program in programs for name in program.writes)}
    return tuple(dict.fromkeys(name for program in programs for name in program.reads if name not in written))


def pieces_of(programs: Sequence[Program], form: str) -> tuple[Piece, ...]:
    """The pieces of a step, in order; `form` is one of `FORMS`."""
    groups = [tuple(programs)] if form == "joined" else [(program,) for program in programs]
    later: set[str] = set()
    pieces = []
    for group in reversed(groups):
        written = {name for program in group for name in program.writes}
        reads = tuple(dict.fromkeys(name for program in group for name in program.reads if name not in written))
        handed_on = () if form == "joined" else group[0].writes
        pieces.append(Piece(group, reads, tuple(name not in later for name in reads), handed_on))
        later.update(reads)
    return tuple(reversed(pieces))


def free(tensors: Tensors, piece: Piece) -> None:
    """Remove the tensors that no piece after this one reads."""
    for name, last in zip(piece.reads, piece.last, strict=True):
        if last:
            del tensors[name]


def on_cpu(mesh: Mesh) -> bool:
    """Whether its devices are CPUs."""
    return bool(mesh.devices.flat[0].platform == "cpu")


def _cpu_options() -> dict[str, str]:
    # Before 0.11 the CPU's compiler runs convolutions of 32 channels and more through a library that uses one core
    # only, unless that library is limited to reductions; a step of ResNet-32 takes an eighth longer then.
    if tuple(int(part) for part in jax.__version__.split(".")[:2]) < (0, 11):
        return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    return {}
