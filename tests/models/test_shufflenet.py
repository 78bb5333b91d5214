import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.models import create
from kd_local.models.layers import average_pool
from kd_local.models.shufflenet import DownUnit, ShuffleUnit, SplitUnit, shuffle

pytestmark = pytest.mark.exhaustive


def count(network) -> int:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.usually("shufflenetv2-1355528")
@pytest.mark.parametrize(("name", "parameters"), [("shufflenetv1", 949_258), ("shufflenetv2", 1_355_528)])
def test_published_numbers_of_parameters(name, parameters):
    assert count(create(name, classes=100)) == parameters


def test_shuffle_interleaves_groups():
    x = jnp.broadcast_to(jnp.arange(6.0), (2, 3, 3, 6))
    np.testing.assert_array_equal(shuffle(x, 3)[1, 2, 2], [0, 2, 4, 1, 3, 5])
    np.testing.assert_array_equal(shuffle(x, 2)[0, 0, 0], [0, 3, 1, 4, 2, 5])
    np.testing.assert_array_equal(shuffle(x, 1), x)


def test_average_counts_the_padding():
    pooled = average_pool(jnp.ones((1, 4, 4, 1)), 3, stride=2, padding=1)[0, :, :, 0]
    np.testing.assert_allclose(pooled, np.array([[4, 6], [6, 9]]) / 9, rtol=1e-6)


def variables_of(block, x):
    return block.init(jax.random.key(1), x, train=False)


def test_a_unit_with_stride_concatenates_the_average():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 12))
    block = ShuffleUnit(36, stride=2, relu=False)
    y = block.apply(variables_of(block, x), x, train=False)
    assert y.shape == (2, 4, 4, 36)
    np.testing.assert_allclose(y[..., 24:], average_pool(x, 3, stride=2, padding=1), rtol=1e-6)


def test_half_of_the_channels_is_unchanged():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 12))
    block = SplitUnit(12)
    y = block.apply(variables_of(block, x), x, train=False)
    np.testing.assert_array_equal(y[..., ::2], x[..., :6])
    assert (y[..., 1::2] >= 0).all()


@pytest.mark.exhaustive
def test_units_halve_the_resolution():
    x = jnp.ones((2, 7, 8, 6))
    block = DownUnit(16)
    assert block.apply(variables_of(block, x), x, train=False).shape == (2, 4, 4, 16)
