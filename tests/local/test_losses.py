import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.local.losses import local_loss, softmax


def test_cross_entropy_by_hand():
    logits = jnp.array([[0.0, np.log(3.0)], [2.0, 2.0]])
    metrics = softmax(logits, jnp.array([1, 0]))
    assert metrics["loss"] == pytest.approx((np.log(4 / 3) + np.log(2)) / 2, rel=1e-6)
    assert metrics["accuracy"] == 1.0
    assert softmax(logits, jnp.array([0, 1]))["accuracy"] == 0.0


def test_unknown_loss():
    with pytest.raises(ValueError, match="unknown local loss 'sofmax': use softmax"):
        local_loss("sofmax")
