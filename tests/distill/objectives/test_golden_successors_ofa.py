"""OFA's exits and losses against the code of its authors: every golden file, in float64. See KD_LOCAL_GOLDEN."""

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from kd_local.distill import EvaluationBatch, Outputs, Pair, TrainingBatch
from kd_local.distill.objectives.ofa import OFA
from kd_local.distill.ofa_exits import exit_after
from kd_local.local.task_loss import TaskLoss
from kd_local.models import create
from tests.interop.test_golden_successors import deviations, optimizer_of, weights_of

FOLDER = Path(os.environ.get("KD_LOCAL_GOLDEN", Path(__file__).parents[3] / "../shared/golden"))
PATHS = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("ofa_exits_*.npz"))] or [
    pytest.param(None, id="none", marks=pytest.mark.skip(reason=f"no golden file of OFA in {FOLDER}"))
]
pytestmark = [] if "KD_LOCAL_GOLDEN" in os.environ else [pytest.mark.exhaustive]

STAGES = 4  # of the authors' code
BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
BLOCK = {"attn.qkv": "qkv", "attn.proj": "projection", "mlp.fc1": "linear1", "mlp.fc2": "linear2"}


def path_of(name: str, dimensions: int) -> tuple[str, ...]:
    """The path of a variable, by its name in the authors' code and the number of its dimensions."""
    _, stage, *inner = name.split(".")
    exit_, layer, kind = f"exit{stage}", ".".join(inner[:-1]), inner[-1]
    if found := re.fullmatch(r"(\d+)\.op\.(\d)", layer):
        block, number = found[1], int(found[2])
        half, step = divmod(number, 4)
        inside = ((f"depthwise{half}",), (f"pointwise{half}", "conv"), (f"pointwise{half}", "norm"))[step]
        path = (f"block{block}", *inside)
    elif found := re.fullmatch(r"0\.fn\.(\d+)\.(norm|reduction)", layer):
        path = (f"merging{found[1]}", found[2])
    elif found := re.fullmatch(r"1\.(\d+)\.(.+)", layer):
        path = (f"block{found[1]}", BLOCK.get(found[2], found[2]))
    else:
        path = ("conv",) if dimensions == 4 else ("linear",)
    of_norm = path[-1].startswith("norm")
    return exit_, *path, BATCH_NORM[kind] if of_norm else {"weight": "kernel", "bias": "bias"}[kind]


def unused(stage: int, x: Any, until: int | None = None) -> Any:
    raise AssertionError("OFA uses no blocks of the teacher")


def to_ours(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_theirs(array: Any) -> np.ndarray:
    return np.asarray(array).transpose(3, 2, 0, 1) if array.ndim == 4 else np.asarray(array).T


def features_of(name: str, shape: list[int]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


@pytest.mark.parametrize("path", PATHS)
@jax.numpy_dtype_promotion("standard")
def test_exits_in_float64(path):
    with jax.enable_x64(True):
        file = np.load(path)
        settings = json.loads(str(file["settings"]))
        weights = weights_of(file, settings)
        paths, trees = {}, {"params": {}, "batch_stats": {}}
        linear = {name.rpartition(".")[0]: array.ndim for name, array in weights.items() if name.endswith("weight")}
        for name, array in weights.items():
            kind = "batch_stats" if "running" in name else "params"
            paths[name] = kind, *path_of(name, linear[name.rpartition(".")[0]])
            trees[kind][paths[name][1:]] = jnp.asarray(to_ours(array.astype(np.float64)))
        variables = {kind: unflatten_dict(tree) for kind, tree in trees.items()}

        maps = len(settings["feature_shapes"][0]) == 4
        stages = settings.get("stages") or list(dict.fromkeys(int(name.split(".")[1]) for name in weights))
        raw = map(features_of, settings["feature_names"], settings["feature_shapes"])
        features = {stage: jnp.asarray(ours(x, settings["class_tokens"])) for stage, x in zip(stages, raw, strict=True)}
        transformer = "vit_ti_16" if settings["class_tokens"] else "vit_ti16"
        student = create("resnet18" if maps else transformer, classes=settings["classes"])
        smoothing = float(file["soft_labels"].min() * settings["classes"]) if settings["soft_labels"] else 0.0
        objective = OFA(
            ce_weight=settings["weight_gt"],
            logits_weight=settings["weight_kd"],
            exits_weight=settings["weight_ofa"],
            stages=tuple(stages),
            eps=tuple(settings["eps"]),
            temperature=settings["temperature"],
        )
        labels = jnp.asarray(file["soft_labels"].argmax(axis=1) if settings["soft_labels"] else file["y"], jnp.int32)
        np.testing.assert_array_equal(labels, file["y"])
        if settings["soft_labels"]:
            soft = np.eye(settings["classes"])[labels] * (1 - smoothing) + smoothing / settings["classes"]
            np.testing.assert_allclose(file["soft_labels"], soft, rtol=1e-12)
        teacher_logits, pair = jnp.asarray(file["teacher_logits"]), Pair(student, student)

        def batch(features, student_logits):
            outputs = tuple(features.get(stage) for stage in range(STAGES + 1))
            pooled = jax.ShapeDtypeStruct((len(labels), settings["student_dim"]), jnp.float64)
            return TrainingBatch(
                pair=pair,
                student=Outputs(outputs, outputs, pooled, student_logits),
                teacher=Outputs.of_logits(teacher_logits),  # as from a cache
                remaining_blocks=unused,
                labels=labels,
                indices=labels,
                epoch=jnp.ones(()),
                rng=jax.random.key(0),
                task_loss=TaskLoss(label_smoothing=smoothing),
            )

        def loss(params, features, student_logits):
            found = objective.loss({**variables, "params": params}, batch(features, student_logits))
            return found.total, found

        given = variables["params"], features, jnp.asarray(file["student_logits"])
        gradients, found = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*given)
        check_start(objective, batch(*given[1:]), settings, variables)
        optimizer = optimizer_of(settings)
        updates, _ = optimizer.update(gradients[0], optimizer.init(given[0]), given[0])
        after = optax.apply_updates(given[0], updates)
        of_features = [theirs(gradients[1][stage], maps) for stage in stages]
        results = {
            "exit_logits": exit_logits(student, features, variables, settings),
            "loss_values": [
                found.task,
                settings["weight_kd"] * found.metrics["logits"],
                settings["weight_ofa"] * found.metrics["exits"],
            ],
            "total_loss": found.total,
            "logit_grad": gradients[2],
            "feature_gradnorm": [np.linalg.norm(x.reshape(len(x), -1), axis=1) for x in of_features],
            "feature_gradhead": [x.ravel()[:16] for x in of_features],
            "grad": named({"params": gradients[0]}, paths),
            "after": named({"params": after}, paths),
            "stat": named({"batch_stats": found.batch_stats}, paths),
        }
        assert not deviations(results, file, "", settings)


def ours(x: np.ndarray, class_tokens: int) -> np.ndarray:
    """Maps, or tokens (batch, tokens, channels), as the networks here have them."""
    if x.ndim == 4:
        return x.transpose(0, 2, 3, 1)
    side = int(x.shape[1] ** 0.5)
    return x[:, None] if class_tokens else x.reshape(len(x), side, side, x.shape[2])


def theirs(x: Any, maps: bool) -> np.ndarray:
    x = np.asarray(x)
    return x.transpose(0, 3, 1, 2) if maps else x.reshape(len(x), -1, x.shape[3])


def named(variables: Any, paths: dict[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    flat = flatten_dict(variables)
    return {name: to_theirs(flat[path]) for name, path in paths.items() if path in flat}


def check_start(objective: OFA, batch: EvaluationBatch, settings: Any, variables: Any) -> None:
    """New exits have the variables of the file."""
    pooled = jax.ShapeDtypeStruct((1, settings["teacher_dim"]), jnp.float64)
    whole = EvaluationBatch(batch.pair, batch.student, Outputs((), (), pooled, None), unused)
    new = jax.eval_shape(lambda: objective.init(jax.random.key(0), whole))
    assert jax.tree.map(jnp.shape, flatten_dict(new)) == jax.tree.map(jnp.shape, flatten_dict(variables))


def exit_logits(student: Any, features: Any, variables: Any, settings: Any) -> list[Any]:
    width = settings["student_dim"]
    if not student.is_transformer:
        width = max(width, settings["teacher_dim"])
    found = []
    for stage, x in features.items():
        module = exit_after(student, x.shape, behind=STAGES - stage, width=width, classes=settings["classes"])
        own = {kind: tree[f"exit{stage}"] for kind, tree in variables.items() if f"exit{stage}" in tree}
        found.append(module.apply(own, x, train=True, mutable=["batch_stats"])[0])
    return found
