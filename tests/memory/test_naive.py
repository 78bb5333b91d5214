"""The one-function form computes the same as local learning, but needs more memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.contract import Method
from kd_local.local import ContSup, Momentum, PixelScale, cut
from kd_local.memory import SummedLosses, footprint, target
from kd_local.models import create
from kd_local.parallel import compile_step, plan_step

OPTIMIZER = optax.sgd(0.1, momentum=0.9, nesterov=True)
CUT = cut(
    create("resnet8", classes=10), 3, classes=10, context="R1", decoder=PixelScale((0.5,), (0.2,)), head="0c1f"
)  # fmt: skip
SHAPE = (8, 8, 1)


@pytest.mark.exhaustive
def test_the_summed_step_equals_that_of_separate_modules():
    key, data_key = jax.random.split(jax.random.key(0))
    images = jax.random.normal(data_key, (8, *SHAPE))
    labels = jnp.arange(8) % 10
    naive, separate = SummedLosses(CUT, OPTIMIZER), ContSup(CUT, OPTIMIZER)
    assert isinstance(naive, Method)
    of_naive, of_separate = naive.init(key, images), separate.init(key, images)
    before = jax.tree.map(np.asarray, of_naive["network"]["params"])
    np.testing.assert_array_equal(naive.logits(of_naive, images), separate.logits(of_separate, images))
    of_naive, metrics = compile_step(naive, images, labels)(of_naive, np.asarray(images), labels, key)
    of_separate, each = compile_step(separate, images, labels)(of_separate, np.asarray(images), labels, key)
    # Momentum starts from zero: after one step its trace is the gradient.
    for name, part in of_separate.items():
        for collection in ("params", "batch_stats"):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                of_naive["network"][collection][name],
                part[collection],
            )
        moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before[name], part["params"])
        assert max(jax.tree.leaves(moved)) > 1e-3
    np.testing.assert_allclose(metrics["network"]["loss"], sum(values["loss"] for values in each.values()), rtol=1e-5)
    assert jax.tree.structure(naive.deployed(of_naive)) == jax.tree.structure(separate.deployed(of_separate))


@pytest.mark.exhaustive
def test_the_summed_step_is_one_executable_without_carried_tensors():
    found = footprint(SummedLosses(CUT, OPTIMIZER), SHAPE, 8, target())
    assert found.executables == len(found.pieces) == 1
    assert found.carried_bytes == 8 * 8 * 8 * 4 + 8 * 4  # the batch


def test_a_moving_average_is_read_and_keeps_its_value():
    cut_network = cut(
        create("resnet8", classes=10), 2, classes=10, boundaries=("stem",), context="R0", auxiliary=Momentum()
    )
    naive, images = SummedLosses(cut_network, OPTIMIZER), jax.ShapeDtypeStruct((4, *SHAPE), jnp.float32)
    state = jax.eval_shape(naive.init, jax.random.key(0), images)
    assert set(state) == {"network", "average00"}
    plan = plan_step(naive, images, jax.ShapeDtypeStruct((4,), jnp.int32), state=state)
    assert jax.tree.structure(plan.calls[0].shapes[0]) == jax.tree.structure((state["network"],))
    assert set(naive.deployed(state)["module00"]) == {"blocks"}
