from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.models import create, resnet


def count(network, channels: int = 3) -> int:
    variables = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def by_hand(depth: int, widths: tuple[int, ...], classes: int, projection: bool) -> int:
    """Weights of the convolutions, two per channel of a batch normalisation, and the linear layer."""
    total = 9 * 3 * widths[0] + 2 * widths[0]
    before = widths[0]
    for stage, width in enumerate(widths[1:]):
        for block in range((depth - 2) // 6):
            total += 9 * before * width + 9 * width * width + 4 * width
            changes = before != width or (stage > 0 and block == 0)
            total += (before * width + 2 * width) if projection and changes else 0
            before = width
    return total + before * classes + classes


@pytest.mark.usually("resnet32-466906")
@pytest.mark.parametrize(("name", "parameters"), [("resnet32", 466_906), ("resnet110", 1_730_714)])
def test_published_numbers_of_parameters(name, parameters):
    assert count(create(name, classes=10)) == parameters


@pytest.mark.usually("resnet8", "resnet8x4")
@pytest.mark.parametrize("name", [f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110, "8x4", "32x4")])
def test_parameters_by_hand(name):
    wide = name.endswith("x4")
    depth = int(name.removeprefix("resnet").removesuffix("x4"))
    widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    for shortcut in ("projection", "padding"):
        network = create(name, classes=7, shortcut=shortcut)
        assert count(network) == by_hand(depth, widths, 7, shortcut == "projection")


def test_resnet1202_is_built_in_seconds():
    assert len(create("resnet1202", classes=10)) == 602


@pytest.mark.usually("9-projection", "9-padding", "96-projection")
@pytest.mark.parametrize("shortcut", ["projection", "padding"])
@pytest.mark.parametrize("size", [8, 9, 33, 96])
def test_resolutions(shortcut, size):
    network = resnet(8, classes=3, shortcut=shortcut)
    images = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    features, _ = jax.eval_shape(partial(network.features, train=False), variables, images)
    shapes = [features[name].shape for name in network.names]
    half = -(-size // 2)
    quarter = -(-half // 2)
    assert shapes == [
        (2, size, size, 16),
        (2, size, size, 16),
        (2, half, half, 32),
        (2, quarter, quarter, 64),
        (2, 3),
    ]


def test_padding_shortcut_subsamples_and_pads_half_on_each_side():
    network = resnet(8, classes=3, shortcut="padding")
    block = network["stage2/0"]
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 8, 8, 16)))
    variables = block.init(jax.random.key(1), x, train=False)
    silent = jax.tree.map(jnp.zeros_like, variables["params"])
    out = block.apply({**variables, "params": silent}, x, train=False)
    np.testing.assert_array_equal(out[..., 8:24], x[:, ::2, ::2])
    assert not out[..., :8].any() and not out[..., 24:].any()


# Flax mixes dtypes if those of computation and statistics differ.
@pytest.mark.exhaustive
@jax.numpy_dtype_promotion("standard")
def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_statistics():
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    network = resnet(8, classes=5, dtype=jnp.bfloat16)
    variables = network.init(jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    features, statistics = jax.jit(partial(network.features, train=True))(variables, images)
    assert {x.dtype for x in features.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(statistics)} == {jnp.dtype("float32")}
    exact, _ = jax.jit(partial(resnet(8, classes=5).apply, train=True))(variables, images)
    logits = features["head"].astype(jnp.float32)
    np.testing.assert_allclose(logits, exact, atol=0.05 * float(jnp.abs(exact).max()))


@jax.numpy_dtype_promotion("standard")
def test_float64_stays_float64():
    with jax.enable_x64(True):
        network, shape = resnet(8, classes=5), (2, 8, 8, 3)
        initial = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
        variables, images = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), (initial, jax.ShapeDtypeStruct(shape, jnp.float32))
        )
        features, statistics = jax.eval_shape(partial(network.features, train=True), variables, images)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves((features, statistics))}
    assert dtypes == {jnp.dtype("float64")}


@pytest.mark.long
def test_initialisation():
    network = resnet(8, classes=1000, widths=(64, 64, 64, 64))
    params = network.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))["params"]
    kernel = params["stage1/0"]["conv1"]["conv"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    linear = params["head"]["linear"]["dense"]
    bound = 1 / np.sqrt(64)
    for value in (linear["kernel"], linear["bias"]):
        assert 0.98 * bound < np.abs(value).max() <= bound
        assert np.std(value) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    norm = params["stem"]["conv"]["norm"]
    assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 33}, r"no CIFAR ResNet of depth 33: use 6n\+2 .* the nearest are 32 and 38"),
        ({"depth": 2}, r"no CIFAR ResNet of depth 2: .* the nearest are 8 and 14"),
        ({"classes": 0}, "classes is 0: use 1 or more"),
        ({"widths": (16, 16, 0, 64)}, r"widths is \(16, 16, 0, 64\): use four positive numbers"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet(**{"depth": 8, "classes": 10, **arguments})


def test_unknown_shortcuts_and_networks_are_refused():
    with pytest.raises(ValueError, match="unknown shortcut 'pad': use projection or padding"):
        create("resnet8", classes=10, shortcut="pad")
    with pytest.raises(ValueError, match=r"unknown network 'resnet31': the nearest of [0-9]+ are resnet3"):
        create("resnet31", classes=10)
