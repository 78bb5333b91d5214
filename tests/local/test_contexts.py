import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.local.contexts import Context, FeatureEncoder, ImageEncoder
from kd_local.models.layers import average_pool_to


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("R0", [[], [], [], []]),
        ("E", [[], ["images"], ["images"], ["images"]]),
        ("R1", [[], ["images"], ["supplied1"], ["supplied2"]]),
        ("R2", [[], ["images"], ["supplied1", "images"], ["supplied2", "supplied1"]]),
        ("R16", [[], ["images"], ["supplied1", "images"], ["supplied2", "supplied1", "images"]]),
        ("R1E", [[], ["images"], ["images", "supplied1"], ["images", "supplied2"]]),
        ("R2E", [[], ["images"], ["images", "supplied1"], ["images", "supplied2", "supplied1"]]),
    ],
)
def test_sources_of_each_module(name, sources):
    context = Context.parse(name)
    assert [list(context.sources(module)) for module in range(4)] == sources
    for module in range(4):
        networks = context.networks(module)
        kinds = [ImageEncoder if "E" in name and i == 0 else FeatureEncoder for i in range(len(networks))]
        assert [type(network) for network in networks] == kinds
        assert len(networks) == len(sources[module])


@pytest.mark.parametrize("name", ["", "R", "r1", "R-1", "R1.5", "R01", "ER1", "R0E", "E1", "R1EE", " R1"])
def test_unknown_contexts_are_refused(name):
    message = f"^unknown context {name!r}: use R0, E, R1, R1E, or Rn / RnE with n >= 1( .nearest: R1.)?$"
    with pytest.raises(ValueError, match=message):
        Context.parse(name)


@pytest.mark.long
def test_image_encoder_by_hand():
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    like = jnp.zeros((2, 4, 4, 5))
    encoder = ImageEncoder()
    variables = encoder.init(jax.random.key(1), images, like, train=False)
    params = variables["params"]
    assert {k: v["conv"]["kernel"].shape for k, v in params.items()} == {"conv1": (3, 3, 3, 12), "conv2": (3, 3, 12, 5)}

    def layer(x, p):
        x = jax.lax.conv_general_dilated(
            x, p["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x + p["conv"]["bias"].reshape(1, 1, 1, -1)
        x = (x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
        return jax.nn.relu(x)

    x = layer(layer(images, params["conv1"]), params["conv2"])
    expected = x.reshape(2, 4, 2, 4, 2, 5).mean((2, 4))
    out, _ = encoder.apply(variables, images, like, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_feature_encoder_by_hand():
    context = jax.random.normal(jax.random.key(0), (2, 8, 8, 6))
    like = jnp.zeros((2, 4, 4, 5))
    encoder = FeatureEncoder()
    variables = encoder.init(jax.random.key(1), context, like, train=False)
    conv = variables["params"]["conv"]["conv"]
    assert conv["kernel"].shape == (1, 1, 6, 5)
    x = jnp.einsum("nhwc,cd->nhwd", context, conv["kernel"][0, 0]) + conv["bias"].reshape(1, 1, 1, -1)
    x = jax.nn.relu((x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5))
    out, _ = encoder.apply(variables, context, like, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(out, x.reshape(2, 4, 2, 4, 2, 5).mean((2, 4)), rtol=1e-4, atol=1e-5)


def test_average_pooling_to_a_size_that_is_not_a_divisor():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    # The windows of torch.nn.functional.adaptive_avg_pool2d: rows and columns 0-1, 1-3, 3-4.
    expected = [[3.0, 4.5, 6.0], [10.5, 12.0, 13.5], [18.0, 19.5, 21.0]]
    np.testing.assert_allclose(average_pool_to(x, (3, 3))[0, :, :, 0], expected, rtol=1e-6)


def test_average_pooling_to_the_same_size_changes_nothing():
    x = jnp.ones((1, 3, 4, 2))
    assert average_pool_to(x, (3, 4)) is x
