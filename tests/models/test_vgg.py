import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.models import create, vgg
from kd_local.models.layers import max_pool


def count(network) -> int:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vgg8", 3_965_028), ("vgg11", 9_277_284), ("vgg13", 9_462_180), ("vgg16", 14_774_436), ("vgg19", 20_086_692)],
)
def test_published_numbers_of_parameters(name, parameters):
    assert count(create(name, classes=100)) == parameters


def test_names():
    names = "stage0/0 stage0/1 stage1/0 stage1/1 stage2/0 stage2/1 stage2/2 stage3/0 stage3/1 stage3/2"
    assert vgg(16, classes=2).names == (*names.split(), "stage4/0", "stage4/1", "stage4/2", "head")


# The last stage has pooling for images of 64x64, not of 32x32 or less.
@pytest.mark.parametrize(
    ("size", "sizes"), [(2, [2, 1, 1, 1, 1]), (8, [8, 4, 2, 1, 1]), (32, [32, 16, 8, 4, 4]), (64, [64, 32, 16, 8, 4])]
)
def test_resolutions(size, sizes):
    network = vgg(8, classes=2)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    features, _ = jax.eval_shape(lambda *inputs: network.features(*inputs, train=False), variables, images)
    assert [features[name].shape[1] for name in network.stages] == sizes


def test_pooling_is_the_first_layer_of_a_stage():
    network = vgg(8, classes=2)
    block = network["stage1/0"].clone(features=6)
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 4))
    variables = block.init(jax.random.key(1), x, train=False)
    pooled = np.asarray(x)[:, :6].reshape(2, 3, 2, 4, 2, 4).max((2, 4))
    without = block.clone(pool_from=None).apply(variables, jnp.asarray(pooled), train=False)
    np.testing.assert_allclose(block.apply(variables, x, train=False), without, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (3, 2, 1)])
def test_maximum_pooling_and_its_gradient(size, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3)) - 3

    def reduced(x):
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, pads)

    outputs = [
        jax.vjp(function, x) for function in (reduced, lambda x: max_pool(x, size, stride=stride, padding=padding))
    ]
    np.testing.assert_array_equal(outputs[0][0], outputs[1][0])
    g = jax.random.normal(jax.random.key(1), outputs[0][0].shape)
    np.testing.assert_allclose(outputs[0][1](g)[0], outputs[1][1](g)[0], rtol=1e-6, atol=1e-6)


def test_unknown_depths_are_refused():
    with pytest.raises(ValueError, match="unknown depth of VGG 15: use 8, 11, 13, 16 or 19"):
        vgg(15, classes=2)
