"""Compilation of programs, and a training step that runs them in order.

This is the one place where programs of any method are compiled. Each owns a part of the state, which is donated. A
tensor handed on is let go of at its last reader, and donated to it on accelerators; on the CPU that saves nothing, as
what is aliased is copied first. Programs that compute the same function on the same shapes share one executable.
"""

import warnings
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import Method, Metrics, Program, State
from kd_local.parallel.mesh import data_mesh, on_every_device, over_the_batch

Tensors = dict[str, Any]


class Step:
    """A method's training step on a mesh (one device, unless told otherwise), compiled when a batch size first comes.

    Calling it gives the state after the step and each program's metrics. The state handed in, and on accelerators the
    batch, are donated: they may not be used afterwards.

    Attributes:
        mesh: the devices.
        programs: the method's, in order.
        metrics: once compiled, the names of all metrics by program, sorted, such as `("module03", "loss")`.
    """

    def __init__(self, method: Method, mesh: Mesh | None = None) -> None:
        self.mesh = data_mesh() if mesh is None else mesh
        self.programs = method.programs()
        self.metrics: tuple[tuple[str, str], ...] = ()
        self._on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        self._last_reads = _last_reads(self.programs)
        self._constants = [
            jax.device_put(np.asarray(program.constants, np.float64), on_every_device(self.mesh))
            for program in self.programs
        ]
        self._compiled: dict[int, list[Any]] = {}

    def __call__(
        self,
        state: State,
        images: Float[Array | np.ndarray, "batch h w c"],
        labels: Int[Array | np.ndarray, " batch"],
        rng: PRNGKeyArray,
    ) -> tuple[State, dict[str, Metrics]]:
        compiled = self._compiled.get(images.shape[0])
        if compiled is None:
            compiled = self.compile(state, images, labels, rng)
        state = dict(state)
        tensors: Tensors = {"images": images, "labels": labels}
        metrics = {}
        for program, last_reads, executable, constants in zip(
            self.programs, self._last_reads, compiled, self._constants, strict=True
        ):
            arguments = _arguments(program, last_reads, state, tensors, rng, constants)
            state[program.name], written, metrics[program.name] = executable(*arguments)
            del arguments
            for name, last in zip(program.reads, last_reads, strict=True):
                if last:
                    del tensors[name]
            tensors.update(zip(program.writes, written, strict=True))
        return state, metrics

    def compile(self, state: State, images: Any, labels: Any, rng: Any) -> list[Any]:
        """The executable of every program, in order, for these shapes (arrays or `jax.ShapeDtypeStruct`).

        Returns:
            `jax.stages.Compiled` objects; programs alike have the same one.
        """
        lowered, index = self._lower(state, images, labels, rng)
        options = _cpu_options() if self._on_cpu else {}
        # One after another: the CPU's compiler uses all cores by itself, and executables that it made at once, from
        # several threads, ran a seventh slower (ResNet-32, K=16, R0; R1E two fifths).
        executables = [one.compile(compiler_options=options) for one in lowered]
        self.metrics = tuple(
            sorted(
                (program.name, metric)
                for program, i in zip(self.programs, index, strict=True)
                for metric in lowered[i].out_info[2]
            )
        )
        self._compiled[images.shape[0]] = [executables[i] for i in index]
        return self._compiled[images.shape[0]]

    def lower(self, state: State, images: Any, labels: Any, rng: Any) -> dict[str, Any]:
        """Every distinct program lowered for these shapes and nothing run: to see what it needs on any target.

        Returns:
            A `jax.stages.Lowered` for each executable, under the name of the first program that it serves.
        """
        lowered, index = self._lower(state, images, labels, rng)
        return {self.programs[index.index(i)].name: one for i, one in enumerate(lowered)}

    def _lower(self, state: State, images: Any, labels: Any, rng: Any) -> tuple[list[Any], list[int]]:
        replicated = on_every_device(self.mesh)
        batched = over_the_batch(self.mesh, images.shape[0])
        tensors: Tensors = {"images": images, "labels": labels}
        lowered: list[Any] = []
        index: list[int] = []
        found: dict[Hashable, tuple[int, Any]] = {}
        for program, last_reads, constants in zip(self.programs, self._last_reads, self._constants, strict=True):
            arguments = _arguments(program, last_reads, state, tensors, rng, constants)
            signature = (program.key, last_reads, _shapes(arguments))
            if signature not in found:
                jitted = jax.jit(
                    partial(_run, program, last_reads),
                    in_shardings=(replicated, replicated, batched, batched, replicated, replicated),
                    out_shardings=(replicated, batched, replicated),
                    donate_argnums=(0,) if self._on_cpu else (0, 2),
                )
                with warnings.catch_warnings():
                    # A tensor at its last reader is of no use where nothing of its shape is written.
                    warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
                    one = jitted.lower(*arguments)
                found[signature] = (len(lowered), one.out_info[1])
                lowered.append(one)
            position, written = found[signature]
            index.append(position)
            tensors.update(zip(program.writes, written, strict=True))
        return lowered, index


def _cpu_options() -> dict[str, str]:
    # Before 0.11 the CPU's compiler runs convolutions of 32 channels and more through a library that uses one core
    # only, unless that library is limited to reductions; a step of ResNet-32 takes an eighth longer then.
    if tuple(int(part) for part in jax.__version__.split(".")[:2]) < (0, 11):
        return {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    return {}


def _last_reads(programs: Sequence[Program]) -> list[tuple[bool, ...]]:
    """For each program and each tensor that it reads, whether no later program reads it."""
    later: set[str] = set()
    result = []
    for program in reversed(programs):
        result.append(tuple(name not in later for name in program.reads))
        later.update(program.reads)
    return result[::-1]


def _arguments(
    program: Program, last_reads: tuple[bool, ...], state: State, tensors: Tensors, rng: Any, constants: Any
) -> tuple[Any, ...]:
    read = [tensors[name] for name in program.reads]
    donated = tuple(tensor for tensor, last in zip(read, last_reads, strict=True) if last)
    kept = tuple(tensor for tensor, last in zip(read, last_reads, strict=True) if not last)
    return state[program.name], tuple(state[name] for name in program.frozen), donated, kept, rng, constants


def _run(
    program: Program,
    last_reads: tuple[bool, ...],
    part: Any,
    frozen: Any,
    donated: Any,
    kept: Any,
    rng: Any,
    constants: Any,
) -> tuple[Any, tuple[Any, ...], Metrics]:
    sources = {True: iter(donated), False: iter(kept)}
    return program.function(part, frozen, tuple(next(sources[last]) for last in last_reads), rng, constants)


def _shapes(arguments: Any) -> Hashable:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
