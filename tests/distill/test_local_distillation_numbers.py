"""Local distillation gives the losses, metrics and weights that the class `LocalDistillation` gave.

The numbers in the JSON file are those of three steps of that class, computed once in float64 before it was replaced.
Weights are a function of their names.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import StoneLoss, TaughtContSup, Teacher, TeacherRule
from kd_local.local import cut
from kd_local.models import resnet
from kd_local.parallel import compile_step, on_every_device
from kd_local.state import new_part

NUMBERS = json.loads(Path(__file__).with_name("local_distillation_numbers.json").read_text())
STUDENT = resnet(8, classes=10)
TEACHER = resnet(8, classes=10, widths=(4, 6, 8, 12))
OPTIMIZER = optax.sgd(1e-2, momentum=0.9)
LIKE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)


def filled(shapes: Any, prefix: str) -> Any:
    def fill(path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
        random = np.random.default_rng(zlib.crc32((prefix + "/".join(key.key for key in path)).encode()))
        if path[-1].key in ("scale", "var"):
            return random.uniform(0.5, 1.5, x.shape)
        if path[-1].key in ("bias", "mean"):
            return random.uniform(-0.1, 0.1, x.shape)
        return random.standard_normal(x.shape) * np.sqrt(2 / np.prod(x.shape[:-1]))

    return jax.tree.map_with_path(fill, shapes)


def weights(method: TaughtContSup) -> dict[str, Any]:
    """A state with weights by the names in `LocalDistillation`."""
    like = jax.eval_shape(method.init, jax.random.key(0), LIKE)
    state = {"teacher": method.rule.teacher.variables}
    for module in method.cut_network.modules:
        variables: dict[str, Any] = {}
        for collection in ("params", "batch_stats"):
            part = like[module.name][collection]
            variables[collection] = {
                "blocks": {
                    number: filled(part["blocks"][number], f"{collection}/{name}/")
                    for number, name in zip(module.blocks.names, module.names, strict=True)
                    if number in part["blocks"]
                }
            }
            if "head" in part:
                connector = filled(part["head"]["connector"], f"{collection}/{module.name}/connector/")
                variables[collection]["head"] = {"connector": connector}
        state[module.name] = new_part(variables, OPTIMIZER)
    return jax.tree.map(np.array, state)


def norms(method: TaughtContSup, state: dict[str, Any]) -> dict[str, float]:
    found = {}
    for module in method.cut_network.modules:
        for collection in ("params", "batch_stats"):
            part = state[module.name][collection]
            for number, name in zip(module.blocks.names, module.names, strict=True):
                if number in part["blocks"]:
                    found[f"{collection}/{name}"] = part["blocks"][number]
            if "head" in part:
                found[f"{collection}/{module.name}/connector"] = part["head"]["connector"]
    return {name: float(optax.tree.norm(tree)) for name, tree in found.items()}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        pytest.param("all", StoneLoss(), id="all"),
        pytest.param("1,2", StoneLoss(distance="dkd", alpha=0.5, last=False), id="lightweight"),
        pytest.param(
            "all standardised", StoneLoss(standardise=True, distance="mlkd", temperature=2.0), id="standardised"
        ),
    ],
)
@jax.numpy_dtype_promotion("standard")
def test_three_steps(name, objective):
    with jax.enable_x64(True):
        shapes = jax.eval_shape(TEACHER.init, jax.random.key(0), LIKE)
        rule = TeacherRule(Teacher(TEACHER, filled(shapes, "teacher/")), (8, 8, 3), objective)
        cut_network = cut(STUDENT, classes=10, boundaries=["stage1/0", "stage2/0"], context="R0", auxiliary=rule)
        method = TaughtContSup(cut_network, OPTIMIZER, rule=rule)
        state = weights(method)
        random = np.random.default_rng(3)
        step = None
        for expected in NUMBERS[name]["metrics"]:
            batch = random.standard_normal((8, 8, 8, 3)), np.arange(8, dtype=np.int32) % 10
            if step is None:
                step = compile_step(method, *batch, state=state)
                state = jax.device_put(state, on_every_device(step.plan.mesh))
            placed = jax.device_put((*batch, jax.random.key(0)), on_every_device(step.plan.mesh))
            state, metrics = step(state, *placed)
            for program, values in expected.items():
                ours = {key: float(value) for key, value in metrics[program].items() if key != "stone_loss"}
                assert ours == pytest.approx(values, rel=1e-10), program
        assert norms(method, jax.device_get(state)) == pytest.approx(NUMBERS[name]["norms"], rel=1e-10)
