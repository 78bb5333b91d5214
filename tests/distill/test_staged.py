"""A network as stages: its own features, given to its later stages, reproduce the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.outputs import output_shapes, outputs
from kd_local.distill.staged import StagedNetwork
from kd_local.models import create

IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
RECTIFIED = {
    "resnet8": True,
    "wrn_16_1": False,
    "vgg8": False,
    "mobilenetv2_half": False,
    "shufflenetv1": True,
    "shufflenetv2": True,
}


@pytest.mark.long
@pytest.mark.usually("vgg8")
@pytest.mark.parametrize("name", RECTIFIED)
def test_the_stages_after_each_stage_reproduce_the_network(name):
    network = create(name, classes=5)
    staged, variables = StagedNetwork(network), network.init(jax.random.key(1), IMAGES)
    whole, expected = outputs(network, variables, IMAGES, train=True)
    features = staged.features(whole, variables, train=True)
    shapes = staged.feature_shapes(output_shapes(network, IMAGES))
    assert [x.shape for x in features] == [x.shape for x in shapes]
    assert [bool((x >= 0).all()) for x in features[1:]] == [RECTIFIED[name]] * (staged.count - 1)
    assert all(staged.rectified(stage) == RECTIFIED[name] for stage in range(1, staged.count))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for stage in (1, staged.count - 2):
        later, logits, statistics = staged.after(stage, variables, features[stage], train=True)
        jax.tree.map(close, later, list(features[stage + 1 :]))
        close(logits, whole.logits)
        assert not statistics.keys() - expected.keys()
        jax.tree.map(close, statistics, {block: expected[block] for block in statistics})


@pytest.mark.long
def test_the_features_of_vgg_are_those_before_the_relu():
    network = create("vgg8", classes=5)
    variables = network.init(jax.random.key(1), IMAGES)
    whole, _ = outputs(network, variables, IMAGES, train=False)
    for before, after in zip(
        StagedNetwork(network).features(whole, variables, train=False), whole.features, strict=True
    ):
        np.testing.assert_allclose(jnp.maximum(before, 0), after, rtol=1e-5, atol=1e-6)
        assert (before < 0).any()
