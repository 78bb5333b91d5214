"""Multiply-adds against counts by hand and the figures of the ContSup paper."""

import jax
import jax.numpy as jnp
import optax
import pytest

from kd_local.costs import multiply_adds, tree_bytes
from kd_local.local import ContSup, cut
from kd_local.models import create

IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def test_multiply_adds_by_hand():
    kernel = jnp.ones((3, 3, 4, 5))
    layout = ("NHWC", "HWIO", "NHWC")
    convolution = lambda x: jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)
    assert multiply_adds(convolution, jnp.ones((2, 8, 8, 4))) == 2 * 4 * 4 * 5 * 9 * 4
    assert multiply_adds(lambda a, b: a @ b + 1, jnp.ones((2, 3)), jnp.ones((3, 7))) == 2 * 3 * 7
    step = lambda total, x: (total @ x, None)
    assert multiply_adds(lambda a, xs: jax.lax.scan(step, a, xs)[0], jnp.ones((4, 4)), jnp.ones((6, 4, 4))) == 6 * 64
    branch = lambda flag, a: jax.lax.cond(flag, lambda a: a @ a, lambda a: a @ a @ a, a)
    assert multiply_adds(branch, jnp.array(True), jnp.ones((4, 4))) == 2 * 64
    assert multiply_adds(jax.jit(lambda a: a @ a), jnp.ones((4, 4))) == 64


def deployed(network: str, modules: int, context: str, **arguments) -> int:
    method = ContSup(
        cut(create(network, classes=10), modules, classes=10, context=context, **arguments), optax.sgd(0.1)
    )
    state = jax.eval_shape(lambda: method.init(jax.random.key(0), IMAGE))
    return multiply_adds(method.logits, state, IMAGE)


@pytest.mark.usually("resnet32-69.1")
@pytest.mark.parametrize(("network", "millions"), [("resnet32", 69.1), ("resnet110", 253.2)])
def test_multiply_adds_of_networks(network, millions):
    assert deployed(network, 1, "R0") / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("network", "context", "percent"),
    [
        ("resnet32", "E", 89.1),
        ("resnet32", "R1", 6.1),
        ("resnet32", "R1E", 95.2),
        ("resnet32", "R4", 26.8),
        ("resnet110", "E", 24.3),
        ("resnet110", "R1", 1.7),
        ("resnet110", "R1E", 26.0),
    ],
)
def test_contexts_at_sixteen_modules(network, context, percent):
    """Multiply-adds that contexts add at inference, against the published figures."""
    more = deployed(network, 16, context) / deployed(network, 1, "R0") - 1
    assert 100 * more == pytest.approx(percent, abs=0.06)


@pytest.mark.exhaustive
def test_the_pooled_image_encoder_costs_less_than_a_third():
    network = deployed("resnet32", 1, "R0")
    assert 100 * (deployed("resnet32", 16, "E", image_encoder="pooled") / network - 1) == pytest.approx(28, abs=0.5)


def test_tree_bytes():
    tree = {"a": jnp.zeros((2, 3), jnp.float32), "b": (jax.ShapeDtypeStruct((5,), jnp.bfloat16), None)}
    assert tree_bytes(tree) == 2 * 3 * 4 + 5 * 2
    assert tree_bytes(()) == 0
