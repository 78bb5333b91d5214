"""The properties of every family on which cutting and distillation depend, and the registry."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.models import NAMES, create
from kd_local.networks import Network, apply_block, init_block

# One network of each family, with all its kinds of blocks.
FAMILIES = (
    "resnet8",
    "wrn_16_1",
    "vgg8",
    "resnet18",
    "resnet50_cifar",
    "mobilenetv1",
    "mobilenetv2",
    "mobilenetv2_half",
    "shufflenetv1",
    "shufflenetv2",
)
# Vision transformers have tests of their own: their heads start at zero, and patches must divide the images.
ELSEWHERE = tuple(name for name in NAMES if name.startswith("vit_"))
# Without slow ones: bottlenecks are trained in test_imagenet_resnet.py, MobileNetV2 in its smaller form.
SMALL = tuple(name for name in FAMILIES if name not in ("resnet50_cifar", "mobilenetv2"))
# Blocks without ReLU at the end, or with ReLU6.
UNRECTIFIED = {"ConvStem", "PreActivationBlock", "CappedStem", "InvertedResidual"}
# Equal blocks share one compilation.
run = partial(jax.jit, static_argnums=0, static_argnames="train")(apply_block)


def shapes(name: str, size: int, *, dtype=None):
    """Variables, features and updated statistics in training mode, as shapes and dtypes."""
    network = create(name, classes=7, dtype=dtype)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return network, variables, *jax.eval_shape(partial(network.features, train=True), variables, images)


def test_every_network_is_of_a_tested_family():
    families = {type(create(name, classes=2).modules[1]) for name in FAMILIES}
    assert {type(create(name, classes=2).modules[1]) for name in NAMES if name not in ELSEWHERE} == families


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_with_relu_at_the_end_have_the_field(name):
    for block_name, block in create(name, classes=7)[:-1]:
        assert getattr(block, "relu", False) == (type(block).__name__ not in UNRECTIFIED), block_name


# Convolutions on the main path, and the linear layer. The depth in the names of Wide ResNets includes three shortcuts,
# that in the names of VGGs two more linear ones. MobileNetV1: stem, 13 blocks of 2, head. MobileNetV2: stem, 17 blocks
# of 3 (the first of 2), 2 in the head. ShuffleNets: stem, 16 units of 3, 1 or 2 in the head.
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        *[(f"resnet{depth}", depth) for depth in (8, 14, 20, 32, 44, 56, 110, 1202, 18, 34, 50, 101)],
        *[(f"resnet{depth}_cifar", depth) for depth in (18, 34, 50, 101)],
        *[("resnet8x4", 8), ("resnet32x4", 32), ("wrn_16_1", 14), ("wrn_16_2", 14), ("wrn_40_1", 38), ("wrn_40_2", 38)],
        *[(f"vgg{depth}", depth - 2) for depth in (8, 11, 13, 16, 19)],
        *[("mobilenetv1", 28), ("mobilenetv2", 53), ("mobilenetv2_half", 54)],
        *[("shufflenetv1", 50), ("shufflenetv2", 51)],
        *[(f"vgg{depth}_bn", depth) for depth in (11, 13, 16, 19)],
        *[(f"shufflenet_v2_{width}", 51) for width in ("x0_5", "x1_0", "x1_5", "x2_0")],
        *[(f"vit_{size}", 50) for size in ("ti16", "s16", "ti_16", "s_16", "b_16", "b_32")],
        *[("vit_l_16", 98), ("vit_l_32", 98)],
        *[(f"vit_ti{patch}", 50) for patch in ("2", "4", "_2", "_4")],
    ],
)
def test_layers_are_counted(name, layers):
    assert sum(block.layers for block in create(name, classes=7).modules) == layers


def test_layers_of_every_network_are_counted_above():
    marks = test_layers_are_counted.pytestmark
    assert {name for name, _ in marks[0].args[1]} == set(NAMES)


@pytest.mark.usually("33-resnet8", "33-vgg8", "96-wrn_16_1")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [33, 96])
def test_resolutions(name, size):
    network, _, features, _ = shapes(name, size)
    assert features["head"].shape == (2, 7)
    sizes = [features[stage].shape[1] for stage in network.stages]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] >= 1


@pytest.mark.usually("resnet8")
@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_statistics(name):
    _, variables, features, statistics = shapes(name, 8, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, statistics))} == {jnp.dtype("float32")}
    assert {x.dtype for x in features.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.long
@pytest.mark.usually("resnet8")
@pytest.mark.parametrize("name", SMALL)
def test_a_gradient_is_finite_and_reaches_every_weight(name):
    whole = create(name, classes=3)
    # Only the first two blocks of a stage: the others equal the second.
    network = Network.of({block: module for block, module in whole if block.partition("/")[2] in ("", "0", "1")})
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
    variables = network.init(jax.random.key(0), images)

    def objective(params):
        x = images
        for block_name, block in network:
            own = {"params": params[block_name], "batch_stats": variables["batch_stats"].get(block_name, {})}
            x, _ = run(block, own, x, train=True)
        return -jax.nn.log_softmax(x)[:, 0].mean()

    loss, gradients = jax.value_and_grad(objective)(variables["params"])
    assert jnp.isfinite(loss)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all(), path
        assert gradient.any() or path[-1].key == "bias", path


@pytest.mark.usually("resnet8", "wrn_16_1")
@pytest.mark.parametrize("name", SMALL)
def test_features_before_relu_and_pooled_features(name):
    network, _, features, _ = shapes(name, 8)
    # The last block of the first stage after the stem, and the head.
    for after in (network.stages[1], "head"):
        block, before = network[after], network.names[network.position(after) - 1]
        x = nn.relu(jax.random.normal(jax.random.key(1), features[before].shape))
        variables = init_block(block, jax.random.key(0), x)
        y, _ = run(block, variables, x, train=True)
        if getattr(block, "relu", False):
            unrectified, _ = run(block.clone(relu=False), variables, x, train=True)
            assert (unrectified < 0).any(), after
            np.testing.assert_allclose(nn.relu(unrectified), y, rtol=1e-5, atol=1e-6)
    pooled, _ = block.apply(variables, x, train=True, method="pool", mutable=["batch_stats"])
    assert pooled.shape == (2, variables["params"]["linear"]["dense"]["kernel"].shape[0])
    np.testing.assert_allclose(block.apply(variables, pooled, method="classify"), y, rtol=1e-5, atol=1e-6)
    evaluated = block.apply(variables, x, train=False, method="pool")
    logits = block.apply(variables, x, train=False)
    np.testing.assert_allclose(block.apply(variables, evaluated, method="classify"), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "resnet8"])
def test_options_of_other_families_are_refused(name):
    with pytest.raises(
        ValueError, match=f"shortcut 'padding' is not for {name}: leave it at 'projection', or use a CIF"
    ):
        create(name, classes=3, shortcut="padding")
    with pytest.raises(ValueError, match="classes is 0: use 1 or more"):
        create(name, classes=0)
