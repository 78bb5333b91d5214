"""A program that reads a subtree of a part that a later program owns: a moving average of its parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.contract import Program, owner, subtree
from kd_local.parallel import StepOptions, compile_step, device_mesh

MOMENTUM, STEPS = 0.75, 4
IMAGES, LABELS = np.ones((8, 2, 2, 1), np.float32), np.arange(8, dtype=np.int32)


def first(part, frozen, tensors, rng, constants):
    """Hands on the images times the average; its loss is the average."""
    (average,), (images, _) = frozen, tensors
    return part, (images * average["w"].reshape(1, 1, 1, -1)[..., :1],), {"loss": average["w"][0]}


def average(part, frozen, tensors, rng, constants):
    (source,) = frozen
    return {"params": jax.tree.map(lambda a, b: MOMENTUM * a + (1 - MOMENTUM) * b, part["params"], source)}, (), {}


def last(part, frozen, tensors, rng, constants):
    (x,) = tensors
    doubled = {"block": {"w": 2 * part["params"]["block"]["w"]}}
    return {**part, "params": doubled}, (), {"loss": x.mean()}


@dataclass(frozen=True)
class Averaged:
    """The parameter w of `last` doubles in each step; its average reads the value before the step."""

    size: int = 8

    def init(self, rng: Any, images: Any) -> dict[str, Any]:
        part = {"params": {"block": {"w": jnp.ones(self.size)}}, "batch_stats": {}, "opt_state": ()}
        return {
            "first": {"params": {"w": jnp.ones(1)}, "batch_stats": {}, "opt_state": ()},
            "average": {"params": {"w": jnp.full(self.size, 3.0)}},
            "last": part,
        }

    def programs(self) -> tuple[Program, ...]:
        source = "last/params/block"
        return (
            Program("first", "first", first, ("images", "labels"), ("x",), frozen=("average/params",)),
            Program("average", "average", average, (), frozen=(source,), trains=False),
            Program("last", "last", last, ("x",)),
        )

    def logits(self, state: Any, images: Any) -> Any:
        return images

    def exits(self, state: Any, images: Any) -> Mapping[str, Any]:
        return {}

    def deployed(self, state: Any) -> Mapping[str, Any]:
        return {}

    deployed_program = None


def by_hand() -> tuple[list[float], float]:
    """The average that each step reads, and the one after the last step."""
    read, value, w = [], 3.0, 1.0
    for _ in range(STEPS):
        read.append(value)
        value, w = MOMENTUM * value + (1 - MOMENTUM) * w, 2 * w
    return read, value


@pytest.mark.parametrize(
    ("form", "data", "module", "shard", "placement"),
    [
        ("separate", 1, 1, "nothing", None),
        ("joined", 1, 1, "nothing", None),
        ("separate", 2, 1, "state", None),
        ("joined", 2, 1, "state", None),
        ("separate", 1, 2, "nothing", (0, 1, 1)),
        ("separate", 1, 2, "nothing", (0, 0, 1)),
        ("separate", 2, 2, "state", (0, 1, 1)),
    ],
)
def test_a_program_reads_a_subtree_before_its_owner_updates_it(form, data, module, shard, placement):
    method = Averaged(size=8192)  # large enough to be divided
    mesh = device_mesh(data, module)
    state = method.init(None, IMAGES)
    options = StepOptions(form=form, shard=shard, placement=placement)
    step = compile_step(method, IMAGES, LABELS, state=state, mesh=mesh, options=options)
    state = step.place(state)
    read = []
    for _ in range(STEPS):
        state, metrics = step(state, jnp.array(IMAGES), jnp.array(LABELS), jax.random.key(0))
        assert metrics["average"] == {}
        read.append(metrics["first"]["loss"].item())
    expected, after = by_hand()
    np.testing.assert_allclose(read, expected, rtol=1e-6)
    np.testing.assert_allclose(state["average"]["params"]["w"], after, rtol=1e-6)


def test_paths():
    state = {"module03": {"params": {"blocks": {"0": 1}}}}
    assert owner("module03/params/blocks/0") == "module03"
    assert subtree(state, "module03/params/blocks") == {"0": 1}
    assert subtree(state, "module03") is state["module03"]
