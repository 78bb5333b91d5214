"""A training step: the programs of a method in order, on one group of devices or on several."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import Method, Metrics, State
from kd_local.costs import multiply_adds
from kd_local.errors import unknown
from kd_local.models.normalization import normalised_in_parts
from kd_local.parallel.mesh import batch_shardings, data_mesh, groups, on_every_device, over_the_batch
from kd_local.parallel.pieces import Call, Piece, Tensors, compile_lowered, further_tensors, let_go, on_cpu, pieces_of
from kd_local.parallel.placement import check_groups, contiguous
from kd_local.parallel.sharding import part_shardings
from kd_local.parallel.transfer import move

NOTHING: Mapping[str, Any] = MappingProxyType({})

BATCH_NORMS: tuple[str, ...] = ("global", "device")
"""`global`: over the batch on all devices of a group. `device`: each device over its own part of the batch, without
waiting for the others; the running statistics move to the mean of the devices' ones. A batch that is not divided, an
epoch's last one, is always taken whole."""

Watch = Callable[[int, str, Sequence[Metrics]], None]


class Step:
    """A method's training step on a mesh (one device, unless told otherwise), compiled when a batch size first comes.

    Calling it gives the state after the step and each program's metrics. The parts of the state that programs own, and
    on accelerators the batch, are donated: they may not be used afterwards.

    On a mesh of several groups of devices (`device_mesh`) each piece runs on the devices of its group, where its part
    of the state lives. Calls return at once, and nothing flows back from a later module: while a group works on one
    batch, the one before works on the next, with the results of one device.

    Attributes:
        mesh: the devices.
        groups: of devices, each a mesh.
        pieces: what is compiled together, in order.
        placement: once compiled, the group of each piece: as given, or such that the slowest group has as few
            multiply-adds as can be.
        further: names of the tensors that programs read besides images and labels, and none writes: `extra` has them.
        watch: told of each piece as it is dispatched, if set: its group, its name and its programs' metrics.
        metrics: once compiled, the names of all metrics by program, sorted, such as `("module03", "loss")`.

    Args:
        method, mesh: what to train, on which devices.
        form: see `FORMS`.
        placement: the group of each piece; None to choose it by their multiply-adds.
        shard: what of the state is divided among the devices of a group, see `SHARDED`.
        batch_norm: what batch normalisation takes its statistics over, see `BATCH_NORMS`.

    Raises:
        ValueError: a form, a part of the state or a batch normalisation that is unknown; more groups than pieces, or a
            placement that does not fit them.
    """

    def __init__(
        self,
        method: Method,
        mesh: Mesh | None = None,
        *,
        form: str = "separate",
        placement: Sequence[int] | None = None,
        shard: str = "nothing",
        batch_norm: str = "global",
    ) -> None:
        self.mesh = data_mesh() if mesh is None else mesh
        self.groups = groups(self.mesh)
        self.pieces = pieces_of(method.programs(), form)
        self.placement: tuple[int, ...] | None = None if placement is None else tuple(placement)
        self.further = further_tensors(method.programs())
        self.metrics: tuple[tuple[str, str], ...] = ()
        self.watch: Watch | None = None
        self._shard = shard
        self._batch_norm = batch_norm
        self._owned = {program.name for piece in self.pieces for program in piece.programs}
        self._constants: list[tuple[Any, ...]] = []
        self._compiled: dict[int, list[Any]] = {}
        self._copies: dict[tuple[str, int], tuple[Any, Any]] = {}
        part_shardings({}, self.mesh, shard)
        if batch_norm not in BATCH_NORMS:
            raise unknown("batch normalisation", batch_norm, BATCH_NORMS)
        check_groups(len(self.pieces), len(self.groups))
        if len(self.groups) == 1:
            self.placement = (0,) * len(self.pieces)
        _check(self.placement, len(self.pieces), len(self.groups))

    def __call__(
        self,
        state: State,
        images: Float[Array | np.ndarray, "batch h w c"],
        labels: Int[Array | np.ndarray, " batch"],
        rng: PRNGKeyArray,
        extra: Mapping[str, Any] = NOTHING,
    ) -> tuple[State, dict[str, Metrics]]:
        batch = images.shape[0]
        compiled = self._compiled.get(batch)
        if compiled is None:
            compiled = self.compile(state, images, labels, rng, extra)
            state = self.place(state)
        state = dict(state)
        tensors = self._batch(images, labels, extra)
        metrics: dict[str, Metrics] = {}
        at = 0
        for piece, executable, constants, group in zip(
            self.pieces, compiled, self._constants, self._placed(), strict=True
        ):
            if group != at:
                mesh, at = self.groups[group], group
                tensors = move(tensors, batch_shardings(tensors, mesh, batch))
                rng = move(rng, on_every_device(mesh))
            read_only = {name: self._copy(state, name, group) for program in piece.programs for name in program.frozen}
            arguments = piece.arguments({**state, **read_only}, tensors, rng, constants)
            parts, written, values = executable(*arguments)
            del arguments, read_only
            if self.watch is not None:
                self.watch(group, piece.name, values)
            for program, part, value in zip(piece.programs, parts, values, strict=True):
                state[program.name], metrics[program.name] = part, value
            let_go(tensors, piece)
            tensors.update(zip(piece.writes, written, strict=True))
        return state, metrics

    def residents(self) -> tuple[tuple[str, ...], ...]:
        """The names of the programs of each group of devices, in order; known once compiled."""
        residents: list[list[str]] = [[] for _ in self.groups]
        for piece, group in zip(self.pieces, self._placed(), strict=True):
            residents[group].extend(program.name for program in piece.programs)
        return tuple(map(tuple, residents))

    def compile(
        self, state: State, images: Any, labels: Any, rng: Any, extra: Mapping[str, Any] = NOTHING
    ) -> list[Any]:
        """The executable of every piece, in order, for these shapes (arrays or `jax.ShapeDtypeStruct`).

        Returns:
            `jax.stages.Compiled` objects; pieces alike in one group have the same one.
        """
        executables: dict[Hashable, Any] = {}
        metrics: list[tuple[str, str]] = []
        calls = self.calls(state, images, labels, rng, extra)
        for call in calls:
            # One after another: the CPU's compiler uses all cores by itself, and executables that it made at once,
            # from several threads, ran a seventh slower (ResNet-32, K=16, R0; R1E two fifths).
            if call.signature not in executables:
                executables[call.signature] = compile_lowered(call.lower(), call.mesh)
            for program, values in zip(call.piece.programs, call.shapes[2], strict=True):
                metrics.extend((program.name, metric) for metric in values)
        self.metrics = tuple(sorted(metrics))
        self._constants = [
            tuple(
                move(np.asarray(program.constants, _number()), on_every_device(call.mesh))
                for program in call.piece.programs
            )
            for call in calls
        ]
        self._compiled[images.shape[0]] = [executables[call.signature] for call in calls]
        return self._compiled[images.shape[0]]

    def calls(self, state: State, images: Any, labels: Any, rng: Any, extra: Mapping[str, Any] = NOTHING) -> list[Call]:
        """What would be compiled for these shapes (arrays or `jax.ShapeDtypeStruct`): a call for each piece, in order.

        Nothing is lowered, compiled or run: the mesh may be of devices that are not there.
        """
        known = jax.tree.map(_shape, (state, rng, self._batch(images, labels, extra)))
        if self.placement is None:
            costs: dict[Hashable, int] = {}
            calls = self._calls(*known, placement=(0,) * len(self.pieces))
            for call in calls:
                if call.signature not in costs:
                    costs[call.signature] = multiply_adds(call.piece.run, *call.arguments)
            self.placement = contiguous([costs[call.signature] for call in calls], len(self.groups))
        return self._calls(*known, placement=self.placement)

    def place(self, state: State) -> State:
        """The state on the devices where the step needs it; what is there already stays."""
        group_of: dict[str, int] = {}
        for piece, group in zip(self.pieces, self._placed(), strict=True):
            group_of.update((program.name, group) for program in piece.programs)
        for piece, group in zip(self.pieces, self._placed(), strict=True):
            for program in piece.programs:
                for name in program.frozen:
                    group_of.setdefault(name, group)
        return {
            name: move(part, self._shardings(name, part, self.groups[group_of.get(name, 0)]))
            for name, part in state.items()
        }

    def _calls(self, state: State, rng: Any, batch: Tensors, *, placement: Sequence[int]) -> list[Call]:
        tensors = dict(batch)
        size = tensors["images"].shape[0]
        found: dict[Hashable, Call] = {}
        calls = []
        for piece, group in zip(self.pieces, placement, strict=True):
            mesh = self.groups[group]
            replicated, batched = on_every_device(mesh), over_the_batch(mesh, size)
            constants = tuple(jax.ShapeDtypeStruct((len(one.constants),), _number()) for one in piece.programs)
            arguments = piece.arguments(state, tensors, rng, constants)
            devices = mesh.size if batched.spec else 1
            parts = devices if self._batch_norm == "device" else 1
            signature = (piece.key, _shapes(arguments), mesh, self._shard, parts)
            if signature not in found:
                given = batch_shardings(arguments[2:4], mesh, size)
                own = tuple(self._shardings(program.name, state[program.name], mesh) for program in piece.programs)
                jitted = jax.jit(
                    partial(_run, piece, parts),
                    in_shardings=(own, replicated, *given, replicated, replicated),
                    out_shardings=(own, batched, replicated),
                    keep_unused=True,  # or what it needs could not be told from its arguments
                    donate_argnums=(0,) if on_cpu(mesh) else (0, 2),
                )
                shapes = jitted.eval_shape(*arguments)
                found[signature] = Call(piece, arguments, tensors, mesh, devices, signature, own, jitted, shapes)
            call = replace(found[signature], piece=piece, arguments=arguments, live=dict(tensors))
            calls.append(call)
            let_go(tensors, piece)
            tensors.update(zip(piece.writes, call.shapes[1], strict=True))
        return calls

    def _shardings(self, name: str, part: Any, mesh: Mesh) -> NamedSharding | Any:
        """Of a part of the state; what is only read lies on each device."""
        return part_shardings(part, mesh, self._shard) if name in self._owned else on_every_device(mesh)

    def _copy(self, state: State, name: str, group: int) -> Any:
        """A part that is only read, on the devices of a group that reads it; copied once if it never changes."""
        part, mesh = state[name], self.groups[group]
        if len(self.groups) == 1:
            return part
        known = self._copies.get((name, group))
        if known is None or known[0] is not part:
            known = (part, move(part, on_every_device(mesh)))
            if name not in self._owned:
                self._copies[name, group] = known
        return known[1]

    def _placed(self) -> tuple[int, ...]:
        if self.placement is None:
            raise ValueError("where the pieces go is not known yet: call compile first, with the shapes of a batch")
        return self.placement

    def _batch(self, images: Any, labels: Any, extra: Mapping[str, Any]) -> Tensors:
        if missing := [name for name in self.further if name not in extra]:
            raise ValueError(f"the step reads {', '.join(missing)} too: hand it in as extra={{{missing[0]!r}: ...}}")
        return {"images": images, "labels": labels, **{name: extra[name] for name in self.further}}


def _run(piece: Piece, parts: int, *arguments: Any) -> Any:
    with normalised_in_parts(parts):
        return piece.run(*arguments)


def _check(placement: Sequence[int] | None, pieces: int, groups: int) -> None:
    if placement is None:
        return
    if len(placement) != pieces or sorted(placement) != list(placement) or set(placement) != set(range(groups)):
        raise ValueError(
            f"placement {tuple(placement)} of {pieces} pieces in {groups} groups: use a group for each piece, rising "
            f"from 0 to {groups - 1}, none left out"
        )


def _number() -> Any:
    return jax.dtypes.canonicalize_dtype(np.float64)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))


def _shapes(arguments: Any) -> Hashable:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
