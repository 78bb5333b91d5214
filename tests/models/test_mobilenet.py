import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.models import create, mobilenetv2
from kd_local.models.layers import ConvNorm

pytestmark = pytest.mark.exhaustive


def count(network) -> int:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.usually("mobilenetv1-1000-4231976", "mobilenetv2_half-100-812836")
@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [("mobilenetv1", 1000, 4_231_976), ("mobilenetv2", 1000, 3_504_872), ("mobilenetv2_half", 100, 812_836)],
)
def test_published_numbers_of_parameters(name, classes, parameters):
    assert count(create(name, classes=classes)) == parameters


@pytest.mark.usually("mobilenetv2_half-8-features3")
@pytest.mark.parametrize(
    ("name", "size", "features"),
    [
        ("mobilenetv1", 224, [(56, 128), (28, 256), (14, 512), (7, 1024)]),
        ("mobilenetv2", 224, [(112, 32), (56, 24), (28, 32), (14, 96), (7, 320)]),
        ("mobilenetv2_half", 32, [(16, 16), (16, 12), (8, 16), (4, 48), (2, 160)]),
        ("mobilenetv2_half", 8, [(4, 16), (4, 12), (2, 16), (1, 48), (1, 160)]),
    ],
)
def test_sizes_of_features(name, size, features):
    network = create(name, classes=2)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    found, _ = jax.eval_shape(lambda *inputs: network.features(*inputs, train=False), variables, images)
    assert [found[stage].shape[2:] for stage in network.stages] == features


# 0.75 * 24 = 18: the nearest multiple of 8 is 16, which is less than 0.9 * 18.
@pytest.mark.parametrize(
    ("width", "widths", "head"),
    [(0.75, (24, 16, 24, 24, 48, 72, 120, 240), 1280), (1.4, (48, 24, 32, 48, 88, 136, 224, 448), 1792)],
)
def test_widths_are_multiples_of_8(width, widths, head):
    network = mobilenetv2(classes=2, width=width)
    found = [block.features for _, block in network[:-1]]
    assert tuple(dict.fromkeys(found)) == tuple(dict.fromkeys(widths))
    assert (found[0], found[1], network["head"].features) == (widths[0], widths[1], head)


def test_relu6_has_the_maximum_6():
    layer = ConvNorm(4, relu6=True)
    x = 20 * jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = layer.init(jax.random.key(1), x, train=False)
    out = layer.apply(variables, x, train=False)
    clipped = jnp.clip(layer.clone(relu=False).apply(variables, x, train=False), 0, 6)
    np.testing.assert_allclose(out, clipped, rtol=1e-5, atol=1e-6)
    assert out.max() == 6


def test_blocks_of_constant_shape_have_a_shortcut():
    block = mobilenetv2(classes=2)["stage2/1"].clone(features=8)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    variables = block.init(jax.random.key(1), x, train=False)
    params = {**variables["params"], "project": jax.tree.map(jnp.zeros_like, variables["params"]["project"])}
    silent = {**variables, "params": params}
    np.testing.assert_array_equal(block.apply(silent, x, train=False), x)
    assert not block.clone(stride=2).apply(silent, x, train=False).any()


def test_bad_widths_are_refused():
    with pytest.raises(ValueError, match=r"width is 0.01: use a factor of at least 1/16"):
        mobilenetv2(classes=2, width=0.01)
