"""OFA's loss on logits against calculations by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.objectives.ofa import ofa_loss


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_by_hand():
    # Probabilities of the target: (1/4, 3/4); of the student: (1/2, 1/2). The label is class 1.
    student, target = jnp.zeros((1, 2)), jnp.log(jnp.array([[1.0, 3.0]]))
    for eps in (1.0, 1.5):
        expected = (0.25**eps + 1.75**eps - 1) * np.log(2)
        np.testing.assert_allclose(ofa_loss(student, target, jnp.array([1]), eps=eps), expected, rtol=1e-14)


def test_with_eps_1_it_is_the_divergence_and_the_entropy_of_the_target():
    student, target = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 5)))
    labels = jnp.array([0, 4, 2, 4])
    p = jax.nn.softmax(target)
    entropy = -(p * jnp.log(p)).sum(axis=-1).mean()
    expected = kd_loss(student, target, temperature=1.0) + entropy
    np.testing.assert_allclose(ofa_loss(student, target, labels), expected, rtol=1e-12)


def test_the_largest_probability_of_a_soft_label_is_the_label():
    student, target = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 5)))
    labels = jnp.array([0, 4, 2, 4])
    soft = 0.9 * jax.nn.one_hot(labels, 5) + 0.02
    assert ofa_loss(student, target, soft, eps=1.5) == ofa_loss(student, target, labels, eps=1.5)


def test_a_certain_target_has_finite_gradients():
    target = jnp.float32(200) * jax.nn.one_hot(jnp.array([0, 1]), 4, dtype=jnp.float32)
    gradients = jax.grad(ofa_loss, argnums=(0, 1))(-target, target, jnp.array([0, 2]), eps=0.5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.untyped  # the hook refuses these before the function does
def test_arguments_out_of_range_are_refused():
    logits, labels = jnp.zeros((4, 5)), jnp.zeros(4, int)
    with pytest.raises(ValueError, match=r"eps is 0: use a number in \(0, 100\]"):
        ofa_loss(logits, logits, labels, eps=0)
    with pytest.raises(ValueError, match="labels are from 0 to 5: use 0 to 4"):
        ofa_loss(logits, logits, jnp.array([0, 1, 2, 5]))
    with pytest.raises(ValueError, match=r"labels has shape \(4, 3\)"):
        ofa_loss(logits, logits, jnp.zeros((4, 3)))
