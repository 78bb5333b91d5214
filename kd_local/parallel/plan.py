"""The plan of a training step before it is compiled: the pieces, their devices and the shapes of their arguments."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kd_local.batch_division import normalised_per_device
from kd_local.choices.steps import SHARDED
from kd_local.contract import STRONG_VIEW, Method, State, owner, subtree
from kd_local.costs import multiply_adds
from kd_local.parallel.mesh import batch_shardings, device_mesh, groups, on_every_device, over_the_batch
from kd_local.parallel.options import StepOptions
from kd_local.parallel.pieces import Call, Piece, Tensors, extra_names, free, on_cpu, pieces_of
from kd_local.parallel.placement import balanced_placement, check_placement, with_next
from kd_local.parallel.sharding import part_shardings
from kd_local.parallel.transfer import move

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class StepPlan:
    """A method's step on a mesh for one batch size. Nothing is lowered, compiled or run, so the devices may be absent.

    Attributes:
        mesh: the devices.
        options: the options; `placement` is not None here.
        state, rng: shapes of the method's state and of the step's key.
        batch: shapes of the tensors of a batch by name: `images`, `labels` and the extra tensors.
        calls: one call per piece, in order.
    """

    mesh: Mesh
    options: StepOptions
    state: State
    rng: Any
    batch: Tensors
    calls: tuple[Call, ...]

    @cached_property
    def groups(self) -> tuple[Mesh, ...]:
        """The groups of devices, each as a mesh."""
        return groups(self.mesh)

    @property
    def placement(self) -> tuple[int, ...]:
        """The group of each piece."""
        assert self.options.placement is not None  # `plan_step` chooses one
        return self.options.placement

    @property
    def executables(self) -> int:
        """The number of different executables."""
        return len({call.signature for call in self.calls})

    @cached_property
    def multiply_adds(self) -> int:
        """The multiply-adds of a step, those of gradients included, over all devices. Nothing is compiled."""
        return sum(_multiply_adds(self.calls))

    @property
    def divides_parameters(self) -> bool:
        """True if parameters are divided over the devices of a group."""
        return "params" in SHARDED[self.options.shard]

    @property
    def metrics(self) -> tuple[tuple[str, str], ...]:
        """The sorted pairs of a program's name and a metric's name, such as `("module03", "loss")`."""
        return tuple(
            sorted(
                (program.name, metric)
                for call in self.calls
                for program, values in zip(call.piece.programs, call.shapes[2], strict=True)
                for metric in values
            )
        )

    @property
    def programs(self) -> tuple[tuple[str, ...], ...]:
        """The names of the programs of each group of devices, in order."""
        names: list[list[str]] = [[] for _ in self.groups]
        for call, group in zip(self.calls, self.placement, strict=True):
            names[group].extend(program.name for program in call.piece.programs)
        return tuple(map(tuple, names))

    def place(self, state: State) -> State:
        """The state on the devices where the step needs it. Arrays that are already there are not copied."""
        shardings: dict[str, Any] = {}
        for call in self.calls:
            shardings.update(zip((program.name for program in call.piece.programs), call.own, strict=True))
        for call in self.calls:
            for path in call.piece.frozen:
                shardings.setdefault(owner(path), on_every_device(call.mesh))
        elsewhere = on_every_device(self.groups[0])
        return {name: move(part, shardings.get(name, elsewhere)) for name, part in state.items()}

    def for_batch(self, size: int) -> "StepPlan":
        """The same step, with the same placement, for another number of images."""
        batch = {
            name: jax.ShapeDtypeStruct((size, *like.shape[1:])[: len(like.shape)], like.dtype)
            for name, like in self.batch.items()
        }
        pieces = [call.piece for call in self.calls]
        return replace(self, batch=batch, calls=_calls(pieces, self.groups, self.options, self.state, self.rng, batch))


def plan_step(
    method: Method,
    images: Any,
    labels: Any,
    extra: Mapping[str, Any] = NOTHING,
    *,
    state: State | None = None,
    mesh: Mesh | None = None,
    options: StepOptions = StepOptions(),
) -> StepPlan:
    """Plans a method's step. Arrays may be `jax.ShapeDtypeStruct`s: only shapes and dtypes matter.

    Args:
        method: the method to train.
        images: (batch, height, width, channels), float32.
        labels: (batch,), int32.
        extra: the extra tensors that the method's programs read, by name; see `kd_local.contract.Program`. `indices`,
            `epoch` and `images_strong` may be left out, because their shapes are known.
        state: the method's state; None: the state that `method.init` returns for these images.
        mesh: the devices, see `device_mesh`; None: one device.
        options: how the step is compiled and divided.

    Raises:
        ValueError: see `check_step`; or an extra tensor is missing.
    """
    mesh = device_mesh() if mesh is None else mesh
    check_step(method, mesh, options)
    extra = {**offered_tensors(images), **extra}
    batch = select({"images": images, "labels": labels, **extra}, extra_names(method.programs()))
    rng = jax.eval_shape(lambda: jax.random.key(0))
    if state is None:
        state = jax.eval_shape(method.init, rng, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
    state, rng, batch = jax.tree.map(_shape, (state, rng, batch))
    pieces, devices = pieces_of(method.programs(), options.form), groups(mesh)
    if options.placement is None:
        options = replace(options, placement=(0,) * len(pieces))
        if len(devices) > 1:
            costs = _multiply_adds(_calls(pieces, devices, options, state, rng, batch))
            placement = balanced_placement(costs, len(devices), with_next(pieces))
            options = replace(options, placement=placement)
    return StepPlan(mesh, options, state, rng, batch, _calls(pieces, devices, options, state, rng, batch))


def check_step(method: Method, mesh: Mesh, options: StepOptions) -> None:
    """Checks that a method's step fits a mesh, without tracing anything.

    Raises:
        ValueError: there are more groups than pieces, or the placement does not fit them, or several groups for
            several steps per call.
    """
    if options.steps_per_call > 1 and len(groups(mesh)) > 1:
        raise ValueError(
            f"steps_per_call is {options.steps_per_call} with {len(groups(mesh))} groups of devices: use 1, or a "
            "single group (mesh.module=1)"
        )
    check_placement(options.placement, pieces_of(method.programs(), options.form), len(groups(mesh)))


def offered_tensors(images: Any) -> Tensors:
    """Shapes of the extra tensors that the training loop provides for images of this shape and dtype."""
    return {
        "indices": jax.ShapeDtypeStruct(images.shape[:1], np.int32),
        "epoch": jax.ShapeDtypeStruct((), np.float32),
        STRONG_VIEW: jax.ShapeDtypeStruct(images.shape, images.dtype),
    }


def select(tensors: Mapping[str, Any], extra: Sequence[str]) -> Tensors:
    """Images, labels and the extra tensors with the names `extra`.

    Raises:
        ValueError: a tensor is missing.
    """
    if missing := [name for name in extra if name not in tensors]:
        raise ValueError(f"the step also reads {', '.join(missing)}: pass it as extra={{{missing[0]!r}: ...}}")
    return {name: tensors[name] for name in dict.fromkeys(("images", "labels", *extra))}


def number_type() -> Any:
    """The dtype of a program's constants."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def _calls(
    pieces: Sequence[Piece], devices: Sequence[Mesh], options: StepOptions, state: State, rng: Any, batch: Tensors
) -> tuple[Call, ...]:
    assert options.placement is not None
    tensors = dict(batch)
    size = tensors["images"].shape[0]
    found: dict[Hashable, Call] = {}
    calls = []
    for piece, group in zip(pieces, options.placement, strict=True):
        mesh = devices[group]
        replicated, batched = on_every_device(mesh), over_the_batch(mesh, size)
        constants = tuple(jax.ShapeDtypeStruct((len(one.constants),), number_type()) for one in piece.programs)
        frozen = {path: subtree(state, path) for path in piece.frozen}
        arguments = piece.arguments(state, frozen, tensors, rng, constants)
        dividing = mesh.size if batched.spec else 1
        normalising = dividing if options.batch_norm == "device" else 1
        signature = (piece.key, _shapes(arguments), mesh, options.shard, normalising)
        if signature not in found:
            own = tuple(part_shardings(state[program.name], mesh, options.shard) for program in piece.programs)
            function = partial(_run, piece, normalising)
            jitted = jax.jit(
                function,
                in_shardings=(own, replicated, *batch_shardings(arguments[2:4], mesh, size), replicated, replicated),
                out_shardings=(own, batched, replicated),
                keep_unused=True,  # memory_analysis counts the arguments; pruned ones would be missing
                donate_argnums=(0,) if on_cpu(mesh) else (0, 2),
            )
            shapes = jitted.eval_shape(*arguments)
            found[signature] = Call(piece, arguments, tensors, mesh, dividing, signature, own, function, jitted, shapes)
        call = replace(found[signature], piece=piece, arguments=arguments, live=dict(tensors))
        calls.append(call)
        free(tensors, piece)
        tensors.update(zip(piece.writes, call.shapes[1], strict=True))
    return tuple(calls)


def _multiply_adds(calls: Sequence[Call]) -> list[int]:
    """The multiply-adds of each call. Calls with equal signatures are counted once."""
    distinct = {call.signature: call for call in calls}
    counted = {signature: multiply_adds(call.jitted, *call.arguments) for signature, call in distinct.items()}
    return [counted[call.signature] for call in calls]


def _run(piece: Piece, devices: int, *arguments: Any) -> Any:
    with normalised_per_device(devices):
        return piece.run(*arguments)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))


def _shapes(arguments: Any) -> Hashable:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
