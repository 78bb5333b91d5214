"""Compilation of programs, and a training step that runs them in order.

This is the one place where programs of any method are compiled: each into an executable of its own, or all into one.
Every program owns a part of the state, which is donated. A tensor handed on is let go of at its last reader, and
donated to it on accelerators; on the CPU that saves nothing, as what is aliased is copied first.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import Method, Metrics, Program, State
from kd_local.errors import unknown
from kd_local.parallel.mesh import data_mesh, on_every_device, over_the_batch

FORMS: tuple[str, ...] = ("separate", "joined")
"""`separate`: an executable for each program; programs that compute the same function on the same shapes share one.
`joined`: one executable for the whole step, in which optimization barriers keep the order of the programs."""

Tensors = dict[str, Any]

NOTHING: Mapping[str, Any] = MappingProxyType({})


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
        """Of its first program."""
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
            if parts:  # what the one before needed is let go of before this one starts
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
        devices: among which the batch is divided.
        signature: calls of one signature share an executable.
        jitted: the piece on its mesh.
        shapes: of what it gives: own parts, tensors written, metrics.
    """

    piece: Piece
    arguments: tuple[Any, ...]
    live: Tensors
    devices: int
    signature: Hashable
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
    return lowered.compile(compiler_options=_cpu_options() if _on_cpu(mesh) else {})


class Step:
    """A method's training step on a mesh (one device, unless told otherwise), compiled when a batch size first comes.

    Calling it gives the state after the step and each program's metrics. The parts of the state that programs own, and
    on accelerators the batch, are donated: they may not be used afterwards.

    Attributes:
        mesh: the devices.
        pieces: what is compiled together, in order.
        further: names of the tensors that programs read besides images and labels, and none writes: `extra` has them.
        metrics: once compiled, the names of all metrics by program, sorted, such as `("module03", "loss")`.

    Raises:
        ValueError: an unknown form, see `FORMS`.
    """

    def __init__(self, method: Method, mesh: Mesh | None = None, *, form: str = "separate") -> None:
        self.mesh = data_mesh() if mesh is None else mesh
        self.pieces = _pieces(method.programs(), form)
        self.further = further_tensors(method.programs())
        self.metrics: tuple[tuple[str, str], ...] = ()
        self._constants: list[tuple[Any, ...]] = []
        self._compiled: dict[int, list[Any]] = {}

    def __call__(
        self,
        state: State,
        images: Float[Array | np.ndarray, "batch h w c"],
        labels: Int[Array | np.ndarray, " batch"],
        rng: PRNGKeyArray,
        extra: Mapping[str, Any] = NOTHING,
    ) -> tuple[State, dict[str, Metrics]]:
        compiled = self._compiled.get(images.shape[0])
        if compiled is None:
            compiled = self.compile(state, images, labels, rng, extra)
        state = dict(state)
        tensors = self._batch(images, labels, extra)
        metrics: dict[str, Metrics] = {}
        for piece, executable, constants in zip(self.pieces, compiled, self._constants, strict=True):
            arguments = piece.arguments(state, tensors, rng, constants)
            parts, written, values = executable(*arguments)
            del arguments
            for program, part, value in zip(piece.programs, parts, values, strict=True):
                state[program.name], metrics[program.name] = part, value
            _let_go(tensors, piece)
            tensors.update(zip(piece.writes, written, strict=True))
        return state, metrics

    def compile(
        self, state: State, images: Any, labels: Any, rng: Any, extra: Mapping[str, Any] = NOTHING
    ) -> list[Any]:
        """The executable of every piece, in order, for these shapes (arrays or `jax.ShapeDtypeStruct`).

        Returns:
            `jax.stages.Compiled` objects; pieces alike have the same one.
        """
        executables: dict[Hashable, Any] = {}
        metrics: list[tuple[str, str]] = []
        calls = self.calls(state, images, labels, rng, extra)
        for call in calls:
            # One after another: the CPU's compiler uses all cores by itself, and executables that it made at once,
            # from several threads, ran a seventh slower (ResNet-32, K=16, R0; R1E two fifths).
            if call.signature not in executables:
                executables[call.signature] = compile_lowered(call.lower(), self.mesh)
            for program, values in zip(call.piece.programs, call.shapes[2], strict=True):
                metrics.extend((program.name, metric) for metric in values)
        self.metrics = tuple(sorted(metrics))
        self._constants = [
            tuple(
                jax.device_put(np.asarray(program.constants, np.float64), on_every_device(self.mesh))
                for program in piece.programs
            )
            for piece in self.pieces
        ]
        self._compiled[images.shape[0]] = [executables[call.signature] for call in calls]
        return self._compiled[images.shape[0]]

    def calls(self, state: State, images: Any, labels: Any, rng: Any, extra: Mapping[str, Any] = NOTHING) -> list[Call]:
        """What would be compiled for these shapes (arrays or `jax.ShapeDtypeStruct`): a call for each piece, in order.

        Nothing is lowered, compiled or run: the mesh may be of devices that are not there.
        """
        replicated, batched = on_every_device(self.mesh), over_the_batch(self.mesh, images.shape[0])
        devices = self.mesh.size if batched.spec else 1
        number = jax.dtypes.canonicalize_dtype(np.float64)
        tensors = self._batch(images, labels, extra)
        found: dict[Hashable, Call] = {}
        calls = []
        for piece in self.pieces:
            constants = tuple(jax.ShapeDtypeStruct((len(one.constants),), number) for one in piece.programs)
            arguments = piece.arguments(state, tensors, rng, constants)
            signature = (piece.key, _shapes(arguments), self.mesh)
            if signature not in found:
                jitted = jax.jit(
                    piece.run,
                    in_shardings=(replicated, replicated, batched, batched, replicated, replicated),
                    out_shardings=(replicated, batched, replicated),
                    keep_unused=True,  # or what it needs could not be told from its arguments
                    donate_argnums=(0,) if _on_cpu(self.mesh) else (0, 2),
                )
                shapes = jitted.eval_shape(*arguments)
                found[signature] = Call(piece, arguments, tensors, devices, signature, jitted, shapes)
            call = replace(found[signature], piece=piece, arguments=arguments, live=dict(tensors))
            calls.append(call)
            _let_go(tensors, piece)
            tensors.update(zip(piece.writes, call.shapes[1], strict=True))
        return calls

    def _batch(self, images: Any, labels: Any, extra: Mapping[str, Any]) -> Tensors:
        if missing := [name for name in self.further if name not in extra]:
            raise ValueError(f"the step reads {', '.join(missing)} too: hand it in as extra={{{missing[0]!r}: ...}}")
        return {"images": images, "labels": labels, **{name: extra[name] for name in self.further}}


def further_tensors(programs: Sequence[Program]) -> tuple[str, ...]:
    """Names of the tensors that programs read besides images and labels, and none writes."""
    written = {"images", "labels", *(name for program in programs for name in program.writes)}
    return tuple(dict.fromkeys(name for program in programs for name in program.reads if name not in written))


def _pieces(programs: Sequence[Program], form: str) -> tuple[Piece, ...]:
    if form not in FORMS:
        raise unknown("form of the step", form, FORMS)
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


def _let_go(tensors: Tensors, piece: Piece) -> None:
    for name, last in zip(piece.reads, piece.last, strict=True):
        if last:
            del tensors[name]


def _on_cpu(mesh: Mesh) -> bool:
    return bool(mesh.devices.flat[0].platform == "cpu")


def _cpu_options() -> dict[str, str]:
    # Before 0.11 the CPU's compiler runs convolutions of 32 channels and more through a library that uses one core
    # only, unless that library is limited to reductions; a step of ResNet-32 takes an eighth longer then.
    if tuple(int(part) for part in jax.__version__.split(".")[:2]) < (0, 11):
        return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    return {}


def _shapes(arguments: Any) -> Hashable:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
