import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.models import create, wide_resnet


def count(network) -> int:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("wrn_16_1", 180_916), ("wrn_16_2", 703_284), ("wrn_40_1", 569_780), ("wrn_40_2", 2_255_156)],
)
def test_published_numbers_of_parameters(name, parameters):
    assert count(create(name, classes=100)) == parameters


@pytest.mark.exhaustive
def test_features_are_before_batch_normalisation_and_relu():
    network = wide_resnet(10, 2, classes=3)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    features, _ = network.features(network.init(jax.random.key(0), images), images, train=False)
    shapes = [features[name].shape for name in network.stages]
    assert shapes == [(2, 8, 8, 16), (2, 8, 8, 32), (2, 4, 4, 64), (2, 2, 2, 128)]
    assert all((features[name] < 0).any() for name in network.stages)


@pytest.mark.parametrize(("stride", "channels"), [(1, 4), (1, 8), (2, 8)])
def test_with_zero_weights_a_block_is_its_shortcut(stride, channels):
    block = wide_resnet(10, 1, classes=3)["stage1/0"].clone(features=8, stride=stride)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, channels))
    variables = block.init(jax.random.key(1), x, train=False)
    params = dict(variables["params"])
    params["conv2"] = jax.tree.map(jnp.zeros_like, params["conv2"])
    out = block.apply({**variables, "params": params}, x, train=False)
    if (stride, channels) == (1, 8):
        np.testing.assert_array_equal(out, x)
    else:
        active = jax.nn.relu(x)[:, ::stride, ::stride] / np.sqrt(1 + 1e-5)
        np.testing.assert_allclose(out, active @ params["projection"]["kernel"][0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((20, 1), r"no Wide ResNet of depth 20: use 6n\+4 .* the nearest are 16 and 22"),
        ((4, 1), r"no Wide ResNet of depth 4: .* the nearest are 10 and 16"),
        ((16, 0), "width is 0: use a positive factor"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        wide_resnet(*arguments, classes=10)
