import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.local import probe_accuracy


@pytest.mark.long
def test_linearly_separable_classes_have_high_accuracy():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300).astype(np.int32)
    # Each class has one brighter channel.
    images = random.normal(size=(300, 2, 2, 5)) + 4 * np.eye(5)[labels][:, None, None]
    images, labels = jnp.asarray(images, jnp.float32), jnp.asarray(labels)
    assert probe_accuracy(images[:200], labels[:200], images[200:], labels[200:], classes=3) > 0.98
    shuffled = jnp.roll(labels, 7)
    assert probe_accuracy(images[:200], shuffled[:200], images[200:], shuffled[200:], classes=3) < 0.6


@pytest.mark.long
def test_constant_features_do_not_change_the_accuracy():
    x = jnp.concatenate([jnp.eye(4), jnp.ones((4, 2))], axis=1)
    labels = jnp.arange(4, dtype=jnp.int32)
    assert probe_accuracy(x, labels, x, labels, classes=4) == 1.0
