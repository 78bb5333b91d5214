import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.local.losses import TEMPERATURE, contrast, local_loss


def test_softmax_by_hand():
    logits = jnp.log(jnp.array([[1.0, 3.0], [3.0, 1.0], [1.0, 1.0]]))
    metrics = local_loss("softmax")(logits, jnp.array([1, 1, 0], jnp.int32))
    np.testing.assert_allclose(metrics["loss"], -np.log([3 / 4, 1 / 4, 1 / 2]).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], 2 / 3, rtol=1e-6)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match=r"unknown local loss 'contrastive': .*contrast"):
        local_loss("contrastive")


def contrast_by_hand(features: np.ndarray, labels: np.ndarray) -> float:
    """The formula, sum by sum."""
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    each = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        denominator = sum(np.exp(z[i] @ z[a] / TEMPERATURE) for a in others)
        logs = [np.log(np.exp(z[i] @ z[p] / TEMPERATURE) / denominator) for p in positives]
        each.append(-np.mean(logs) if logs else 0.0)
    return float(np.mean(each))


def test_contrast_by_hand():
    features = np.random.default_rng(0).normal(size=(9, 4))
    labels = np.array([0, 1, 0, 2, 1, 0, 3, 3, 1], np.int32)  # class 2 has no positives
    with jax.enable_x64(True):
        loss = contrast(jnp.asarray(features), jnp.asarray(labels))["loss"]
        np.testing.assert_allclose(loss, contrast_by_hand(features, labels), rtol=1e-12)


@pytest.mark.long
@pytest.mark.usually("features2-labels2")
@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.ones((1, 3)), [0]),  # a batch of one has no other image
        (np.eye(3), [0, 1, 2]),  # no positives
        (np.zeros((4, 3)), [0, 0, 1, 1]),  # a head whose outputs are all 0
        (np.repeat(np.eye(2, 3), 2, axis=0), [0, 0, 1, 1]),
    ],
)
def test_contrast_and_its_gradient_are_finite(features, labels):
    def loss(x):
        return contrast(x, jnp.asarray(labels, jnp.int32))["loss"]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(features, jnp.float32))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_contrast_decreases_when_a_class_moves_together():
    labels = jnp.array([0, 0, 1, 1], jnp.int32)
    apart = jnp.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    losses = [contrast(apart[jnp.array(order)], labels)["loss"] for order in itertools.permutations(range(4))]
    assert contrast(apart, labels)["loss"] == pytest.approx(min(losses))
    assert min(losses) < max(losses) / 10
