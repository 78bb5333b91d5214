"""A network's blocks after a stage in training mode, against the whole network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.outputs import outputs
from kd_local.distill.trained_blocks import trained_blocks
from kd_local.models import create


@pytest.mark.long
def test_the_blocks_after_a_stage_continue_the_network():
    network = create("resnet8", classes=5)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = network.init(jax.random.key(1), images)
    whole, statistics = outputs(network, variables, images, train=True)
    start = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    features, first = trained_blocks(network, variables["params"], 1, whole.features[1], start, until=2)
    logits, last = trained_blocks(network, variables["params"], 2, features, start)
    np.testing.assert_allclose(features, whole.features[2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, whole.logits, rtol=1e-5, atol=1e-6)
    assert not first.keys() & last.keys()
    for name, own in {**first, **last}.items():  # updated from zeros: a tenth of the batch's statistics
        change = jax.tree.map(lambda new, old: new - 0.9 * old, statistics[name], variables["batch_stats"][name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), own, change)
