import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.models import resnet
from kd_local.networks import Network

IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet(8, classes=10)


@pytest.fixture(scope="module")
def variables(network: Network):
    return network.init(jax.random.key(0), IMAGES)


def test_stages_are_the_last_blocks_before_a_change(network):
    assert network.stages == ("stem", "stage1/0", "stage2/0", "stage3/0")
    assert resnet(20, classes=10).stages == ("stem", "stage1/2", "stage2/2", "stage3/2")


@pytest.mark.parametrize("train", [True, False])
def test_slices_compose_to_the_whole(network, variables, train):
    whole, statistics = network.apply(variables, IMAGES, train=train)
    first, second = network[:3], network[3:]
    middle, first_statistics = first.apply(first.select(variables), IMAGES, train=train)
    parts, second_statistics = second.apply(second.select(variables), middle, train=train)
    np.testing.assert_array_equal(whole, parts)
    jax.tree.map(np.testing.assert_array_equal, statistics, {**first_statistics, **second_statistics})


def test_features_are_those_of_the_slices(network, variables):
    features, _ = network.features(variables, IMAGES, train=False)
    assert tuple(features) == network.names
    for i, name in enumerate(network.names, start=1):
        part = network[:i]
        np.testing.assert_array_equal(features[name], part.apply(part.select(variables), IMAGES, train=False)[0])


def test_evaluation_keeps_statistics_and_training_updates_them_by_a_tenth(network, variables):
    _, same = network.apply(variables, IMAGES, train=False)
    jax.tree.map(np.testing.assert_array_equal, same, variables["batch_stats"])
    _, moved = network.apply(variables, IMAGES, train=True)
    kernel = variables["params"]["stem"]["conv"]["conv"]["kernel"]
    convolved = jax.lax.conv_general_dilated(IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(
        moved["stem"]["conv"]["norm"]["mean"], 0.1 * convolved.mean(axis=(0, 1, 2)), rtol=1e-5, atol=1e-7
    )


@pytest.mark.exhaustive
def test_rematerialised_gradients_are_the_same(network, variables):
    def loss(params, images, remat):
        logits, _ = network.apply({**variables, "params": params}, images, train=True, remat=remat)
        return (logits**2).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=2)
    gradients, again = (gradient(variables["params"], IMAGES, remat) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, again)
    many = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    needed = [
        gradient.lower(variables["params"], many, remat).compile().memory_analysis().temp_size_in_bytes
        for remat in (False, True)
    ]
    assert needed[1] < 0.8 * needed[0]


def test_equal_blocks_start_differently(network):
    variables = resnet(14, classes=10).init(jax.random.key(0), IMAGES)["params"]
    first, second = variables["stage1/0"]["conv2"], variables["stage1/1"]["conv2"]
    assert not jnp.array_equal(first["conv"]["kernel"], second["conv"]["kernel"])


def test_init_takes_shapes_for_images(network, variables):
    again = network.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, variables, again)


def test_a_block_by_name(network):
    assert network["stem"] is network.modules[0]
    with pytest.raises(ValueError, match=r"unknown block 'stage9/0': use stem, stage1/0"):
        network["stage9/0"]


def test_bad_networks_are_refused(network):
    block = network["stem"]
    with pytest.raises(ValueError, match="0 names for 0 blocks"):
        network[3:3]
    with pytest.raises(ValueError, match="block names must differ, but a occurs more than once"):
        Network(("a", "a"), (block, block))


def test_equal_blocks_are_traced_once():
    traced = []

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            traced.append(train)
            return nn.Dense(4)(x)

    network = Network.of({name: Block() for name in ("a", "b", "c")})
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    traced.clear()

    def loss(params, x):
        return network.apply({**variables, "params": params}, x, train=True)[0].sum()

    jax.eval_shape(jax.grad(loss), variables["params"], x)
    assert traced == [True]
