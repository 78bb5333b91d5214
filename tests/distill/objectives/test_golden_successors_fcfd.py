"""FCFD's training step against its authors' code: every golden file, in float64, with the teacher in both modes.

The files are read from the folder KD_LOCAL_GOLDEN. Networks, sampled paths and hyper-parameters are those of a file.
"""

import json
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill import FCFD, Distillation, Teacher, TrainingBatch, outputs
from kd_local.distill.mixture_paths import follow, mixture_paths, sample
from kd_local.distill.objectives.fcfd import TEACHER, feature_differences
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.teacher import remaining_blocks
from kd_local.interop import load_network, network_to_torch
from kd_local.models import create
from kd_local.models.registry import NAMES
from kd_local.networks import Network, of_block
from kd_local.parallel import compile_step, on_every_device
from kd_local.state import new_part, variables_of
from tests.interop.test_golden_successors import FOLDER, deviations, inputs, optimizer_of, weights_of

FILES = sorted(FOLDER.glob("fcfd_*.npz"))
PATHS = [pytest.param(path, id=path.stem) for path in FILES] or [
    pytest.param(None, id="none", marks=pytest.mark.skip(reason=f"no golden file of FCFD in {FOLDER}"))
]
pytestmark = [] if "KD_LOCAL_GOLDEN" in os.environ else [pytest.mark.exhaustive]
# Names of other code bases for the same networks, without separators.
ALIASES = {"mobilenetv2": "mobilenetv2_half", "resnet50": "resnet50_cifar"}


def network_of(name: str, classes: int) -> Network:
    """The zoo's network of a name in the file, such as `wrn_40_2`, `MobileNetV2` or `ShuffleV1`."""
    plain = name.lower().replace("-", "_").replace("shufflev", "shufflenetv")
    plain = ALIASES.get(plain, plain)
    names = {known.replace("_", ""): known for known in NAMES}
    return create(plain if plain in NAMES else names[plain.replace("_", "")], classes=classes)


def prefixed(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: np.asarray(array) for name, array in arrays.items()}


def without(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def bridge_names(name: str) -> tuple[str, bool]:
    """The prefix of a bridge's names in the file, and whether it leads to the teacher."""
    stage, to_teacher = name.removeprefix("stage").split("_to_")[0], name.endswith("teacher")
    return f"bridges.{stage}.{'0.1' if to_teacher else '1.0'}.", to_teacher


TENSORS = {
    "0.weight": ("params", "conv", "kernel"),
    "0.bias": ("params", "conv", "bias"),
    "1.weight": ("params", "norm", "scale"),
    "1.bias": ("params", "norm", "bias"),
    "1.running_mean": ("batch_stats", "norm", "mean"),
    "1.running_var": ("batch_stats", "norm", "var"),
}


def bridge_from_torch(name: str, weights: Mapping[str, np.ndarray], shapes: Any) -> dict[str, Any]:
    """Variables of a bridge. Kernels of transposed convolutions (in, out, h, w) have a bias and four rows."""
    arrays = without(bridge_names(name)[0], weights)
    found: dict[str, Any] = {"params": {"conv": {}, "norm": {}}, "batch_stats": {"norm": {}}}
    for theirs, (collection, layer, ours) in TENSORS.items():
        if theirs in arrays:
            array = arrays[theirs].astype(np.float64)
            if array.ndim == 4:
                array = array.transpose(2, 3, 0, 1) if array.shape[2] == 4 else array.transpose(2, 3, 1, 0)
            found[collection][layer][ours] = array
    assert jax.tree.map(np.shape, found) == jax.tree.map(lambda x: x.shape, shapes)
    return found


def bridge_to_torch(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for theirs, (collection, layer, ours) in TENSORS.items():
        array = variables.get(collection, {}).get(layer, {}).get(ours)
        if array is not None:
            array = np.asarray(array)
            if array.ndim == 4:
                array = array.transpose(2, 3, 0, 1) if array.shape[0] == 4 else array.transpose(3, 2, 0, 1)
            found[bridge_names(name)[0] + theirs] = array
    return found


class Golden:
    """A file's networks, weights and step, with the teacher in one of the two modes."""

    def __init__(self, file: Any, prefix: str) -> None:
        self.file, self.prefix, self.settings = file, prefix, json.loads(str(file["settings"]))
        settings = self.settings
        scaled = {name: 255 * np.asarray(settings[name]) for name in ("mean", "std")}
        self.images, self.labels = inputs(file, scaled, "")
        self.student, self.teacher = (
            network_of(settings[side], settings["classes"]) for side in ("student", "teacher")
        )
        weights = weights_of(file, settings)
        self.of_teacher = load_network(self.teacher, without("models.0.", weights), dtype=np.float64)
        of_student = load_network(self.student, without("models.1.", weights), dtype=np.float64)
        self.objective = FCFD(
            mixture_weight=settings["c_mix"],
            feature_weight=settings["w2"],
            temperature=settings["temperature"],
            sampled=len(settings["sampled_paths"]),
            teacher_batch_norm="running" if prefix else "batch",
        )
        teacher = Teacher(self.teacher, self.of_teacher)
        self.method = Distillation(self.student, (teacher,), self.objective, optimizer_of(settings))
        state = self.method.init(jax.random.key(0), self.images)
        state = jax.tree.map(lambda x: np.asarray(x, np.float64), state)
        own = variables_of(state["student"])
        own = {collection: {**own[collection], "student": of_student[collection]} for collection in own}
        for name in own["params"]["teacher0"]:
            shapes = of_block(of_block(own, "teacher0"), name)
            for collection, arrays in bridge_from_torch(name, weights, shapes).items():
                own[collection]["teacher0"] = {**own[collection]["teacher0"], name: arrays}
        self.own = own
        self.state = {"student": new_part(own, self.method.optimizer), "teacher0": state["teacher0"]}
        self.paths = mixture_paths(settings["stages"])
        assert [path.name for path in self.paths] == settings["all_paths"]

    def key(self) -> jax.Array:
        """The first key whose sample consists of the file's paths."""
        wanted = [path.name in self.settings["sampled_paths"] for path in self.paths]
        for seed in range(1000):
            key = jax.random.key(seed)
            if sample(jax.random.split(key, 1)[0], sum(wanted), len(wanted)).tolist() == wanted:
                return key
        raise AssertionError(wanted)

    def forward(self, own: Any, of_teacher: Any, images: Any) -> dict[str, Any]:
        """The logits of all paths, and the file's unweighted losses."""
        of_student, of_objective = of_block(own, "student"), of_block(own, "teacher0")
        batch = TrainingBatch(
            pair=self.method.pairs[0][1],
            student=outputs(self.student, of_student, images, train=True)[0],
            teacher=outputs(self.teacher, of_teacher, images, train=False)[0],
            remaining_blocks=partial(remaining_blocks, self.teacher, of_teacher),
            labels=jnp.asarray(self.labels),
            indices=jnp.zeros(len(self.labels), jnp.int32),
            epoch=jnp.float64(self.settings["epoch"] + 1),
            rng=jax.random.key(0),
            student_params=of_student["params"],
            teacher_variables=of_teacher,
            teacher_images=images,
        )
        step = self.objective.step(of_objective, batch)
        stages, temperature = self.settings["stages"], self.settings["temperature"]
        pure = "1" * stages
        logits = {"0" * stages: step.logits, pure: batch.student.logits}
        maps = {pure: dict(enumerate(step.bridged, start=1))}
        for path in self.paths:
            arguments = step.inputs(path, of_objective, batch)
            features, logits[path.name], _ = follow(path, batch.pair, step.bridges[path.bridge], *arguments)
            maps[path.name] = features if path.to_teacher else {}
        losses = {"ce": batch.task_loss(batch.student.logits, batch.labels)["loss"]}
        for path in (pure, *self.settings["sampled_paths"]):
            losses[f"kl_{path}"] = kd_loss(logits[path], step.logits, temperature=temperature)
            for name, value in feature_differences(maps[path], step.features).items():
                stage = stages - 1 if name == "pooled" else int(name.removeprefix("stage"))
                losses[f"mse_{name}_{path[: stage + 1]}"] = value
        return {**{f"logits/{path}": x for path, x in logits.items()}, "losses": losses}

    def results(self, state: Any, metrics: Any) -> dict[str, Any]:
        part = jax.device_get(state["student"])
        after = self.named(variables_of(part))
        gradients = self.named({**variables_of(part), "params": part["opt_state"][0]})
        return {"total_loss": metrics["student"]["loss"], "grad": gradients, "after": after, "stat": after}

    def named(self, variables: Any) -> dict[str, np.ndarray]:
        of_student, of_objective = of_block(variables, "student"), of_block(variables, "teacher0")
        found = prefixed("models.1.", network_to_torch(self.student, of_student))
        drifted = of_objective["batch_stats"].get(TEACHER, self.of_teacher["batch_stats"])
        found |= prefixed("models.0.", network_to_torch(self.teacher, {**self.of_teacher, "batch_stats": drifted}))
        for name in of_objective["params"]:
            found |= bridge_to_torch(name, of_block(of_objective, name))
        for path in self.paths:
            ghost = of_objective["batch_stats"].get(path.name)
            if ghost is None:
                continue
            network, whole, number = (
                (self.teacher, self.of_teacher, 0) if path.to_teacher else (self.student, of_student, 1)
            )
            whole = {**whole, "batch_stats": {**whole["batch_stats"], **ghost}}
            ends = [network.position(name) for name in network.stages]
            for stage in range(path.switch + 1, path.stages):
                last = stage == path.stages - 1
                blocks = network.names[ends[stage - 1] + 1 : None if last else ends[stage] + 1]
                only = {name: statistics for name, statistics in whole["batch_stats"].items() if name in blocks}
                zeros = jax.tree.map(lambda x: np.full_like(x, np.nan), whole["batch_stats"])
                arrays = network_to_torch(network, {**whole, "batch_stats": {**zeros, **only}})
                names = [name for name, array in arrays.items() if "running" in name and not np.isnan(array).any()]
                found |= prefixed(f"ghost/{path.name[: stage + 1]}/models.{number}.", {n: arrays[n] for n in names})
        return found


@pytest.mark.parametrize("path", PATHS)
@jax.numpy_dtype_promotion("standard")
def test_a_step_in_float64(path):
    with jax.enable_x64(True):
        file = np.load(path)
        wrong: dict[str, Any] = {}
        for prefix in ("", "teacher_eval/"):
            golden = Golden(file, prefix)
            if not prefix:
                logits = jax.jit(golden.method.logits)(golden.state, golden.images)
                of_teacher = jax.jit(golden.method.teacher_logits)(golden.state, golden.images)["teacher0"]
                found = {"eval_logits": logits, "eval_logits_teacher": of_teacher}
                wrong |= deviations(found, file, "", golden.settings)
            found = jax.jit(golden.forward)(golden.own, golden.of_teacher, golden.images)
            names, losses = file[f"{prefix}loss_names"].tolist(), found.pop("losses")
            assert sorted(losses) == sorted(names)
            found["loss_values"] = np.asarray([losses[name] for name in names])
            wrong |= deviations(found, file, prefix, golden.settings)
            epoch = {"epoch": jnp.float64(golden.settings["epoch"] + 1)}
            step = compile_step(golden.method, golden.images, golden.labels, epoch, state=golden.state)
            everywhere = on_every_device(step.plan.mesh)
            placed = jax.device_put((golden.state, golden.images, golden.labels, golden.key(), epoch), everywhere)
            state, metrics = step(*placed)
            wrong |= deviations(golden.results(state, metrics), file, prefix, golden.settings)
    assert not wrong
