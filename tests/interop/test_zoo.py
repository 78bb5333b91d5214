"""Weights of the zoo from PyTorch and back. The logits that they give: test_golden_mdistiller.py."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import code_base, load_network, network_to_torch
from kd_local.models import create, resnet
from kd_local.networks import Network

NETWORKS = (
    "resnet8", "resnet18", "resnet18_cifar", "resnet50_cifar", "wrn_16_1", "vgg8", "vgg16", "mobilenetv1",
    "mobilenetv2", "mobilenetv2_half", "shufflenetv1", "shufflenetv2",
)  # fmt: skip


def zeros(network: Network, channels: int = 3):
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)


def state(network: Network, weights, channels: int = 3) -> dict[str, np.ndarray]:
    names = network_to_torch(network, zeros(network, channels))
    return weights({name: array.shape for name, array in names.items()})


@pytest.mark.usually("resnet8")
@pytest.mark.parametrize("name", NETWORKS)
def test_conversion_to_torch_and_back(name, weights):
    network = create(name, classes=5)
    arrays = state(network, weights, channels=1)
    back = network_to_torch(network, load_network(network, arrays))
    assert tuple(back) == tuple(arrays)
    jax.tree.map(np.testing.assert_array_equal, back, arrays)


# PyTorch's names of the parameters of the first blocks and of the last layer.
@pytest.mark.usually(
    "resnet18-conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2 layer1.1.conv1-fc",
    "mobilenetv1-model.0.0 model.0.1 model.1.0 model.1.1 model.1.3 model.1.4 model.2.0 model.2.1-fc",
    "vgg16-block0.0 block0.1 block0.3 block0.4 block1.0 block1.1 block1.3-classifier",
)
@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("resnet18", "conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2 layer1.1.conv1", "fc"),
        ("resnet50", "conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2 layer1.0.conv3", "fc"),
        ("shufflenetv2", "conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2 layer1.0.conv3", "linear"),
        ("mobilenetv1", "model.0.0 model.0.1 model.1.0 model.1.1 model.1.3 model.1.4 model.2.0 model.2.1", "fc"),
        (
            "mobilenetv2",
            "features.0.0 features.0.1 features.1.conv.0.0 features.1.conv.0.1 features.1.conv.1 features.1.conv.2 "
            "features.2.conv.0.0 features.2.conv.0.1 features.2.conv.1.0 features.2.conv.1.1 features.2.conv.2 "
            "features.2.conv.3 features.3.conv.0.0",
            "classifier.1",
        ),
        ("vgg16", "block0.0 block0.1 block0.3 block0.4 block1.0 block1.1 block1.3", "classifier"),
    ],
)
def test_names(name, first, last):
    network = create(name, classes=5)
    found = list(dict.fromkeys(key.rpartition(".")[0] for key in network_to_torch(network, zeros(network))))
    assert found[: len(first.split())] == first.split()
    assert found[-1] == last


@pytest.mark.exhaustive
def test_names_of_blocks_that_change_the_shape():
    networks = {name: create(name, classes=5) for name in ("resnet18", "resnet18_cifar")}
    names = {name: network_to_torch(network, zeros(network)) for name, network in networks.items()}
    assert "layer2.0.downsample.1.running_var" in names["resnet18"]
    assert "layer2.0.shortcut.1.running_var" in names["resnet18_cifar"] and "linear.bias" in names["resnet18_cifar"]
    network = create("mobilenetv2", classes=5)
    assert network_to_torch(network, zeros(network))["features.18.0.weight"].shape == (1280, 320, 1, 1)


SMALL = resnet(8, classes=5, widths=(4, 4, 8, 8))
PADDED = resnet(8, classes=5, widths=(4, 4, 8, 8), shortcut="padding")


def renamed(arrays, **changes):
    for old, new in changes.items():
        arrays = {name.replace(f"{old}.", f"{new}."): array for name, array in arrays.items()}
    return arrays


def test_other_names_of_resnets_are_detected(weights):
    arrays = state(SMALL, weights)
    variables = load_network(SMALL, arrays)
    for changes in ({"fc": "linear"}, {"downsample": "shortcut"}, {"fc": "linear", "downsample": "shortcut"}):
        jax.tree.map(np.testing.assert_array_equal, load_network(SMALL, renamed(arrays, **changes)), variables)


def test_shortcuts_without_weights(weights):
    arrays = renamed(state(PADDED, weights), fc="linear")
    assert not any("downsample" in name for name in arrays)
    variables = load_network(PADDED, arrays)
    np.testing.assert_array_equal(variables["params"]["head"]["linear"]["dense"]["bias"], arrays["linear.bias"])
    with pytest.raises(
        ValueError, match=r"layer2.0.downsample.0.weight is missing, .*; for shortcuts without .* shortcut='padding'"
    ):
        load_network(SMALL, arrays)


def test_dtypes_and_num_batches_tracked(weights):
    arrays = {name: array.astype(np.float64) for name, array in state(SMALL, weights).items()}
    arrays["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    assert {x.dtype for x in jax.tree.leaves(load_network(SMALL, arrays))} == {np.dtype("float64")}
    loaded = load_network(SMALL, arrays, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype("bfloat16")}


def test_the_error_for_another_depth_names_the_first_difference(weights):
    deeper = resnet(14, classes=5, widths=(4, 4, 8, 8))
    with pytest.raises(ValueError, match=r"^layer1.1.conv1.weight of shape \(4, 4, 3, 3\) is unexpected"):
        load_network(SMALL, state(deeper, weights))
    with pytest.raises(ValueError, match=r"^layer1.1.conv1.weight is missing, expected in shape \(4, 4, 3, 3\)"):
        load_network(deeper, state(SMALL, weights))
    wider = resnet(14, classes=5, widths=(6, 4, 8, 8))
    with pytest.raises(ValueError, match=r"^conv1.weight has shape \(6, 3, 3, 3\), expected \(4, 3, 3, 3\)"):
        load_network(SMALL, state(wider, weights))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fc.bias": None}, "fc.bias is missing, expected in shape (5,)"),
        ({"fc.weight": np.zeros((7, 8))}, "fc.weight has shape (7, 8), expected (5, 8)"),
        ({"bn1.running_mean": None, "fc.bias": np.zeros(7)}, "bn1.running_mean is missing, expected in shape (4,)"),
        ({"extra.weight": np.zeros(3)}, "extra.weight of shape (3,) is unexpected"),
        ({"extra.weight": np.zeros(3), "fc.bias": np.zeros(7)}, "fc.bias has shape (7,), expected (5,)"),
        ({"bn1.weight": np.zeros(4, int)}, "bn1.weight is int64, expected a floating dtype"),
        ({"conv1.weight": np.zeros(3)}, "conv1.weight has shape (3,), expected (4, 3, 3, 3)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, text, weights):
    arrays = state(SMALL, weights) | change
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        load_network(SMALL, {name: array for name, array in arrays.items() if array is not None})


def test_slices_and_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"blocks stage1/0 to head are not a whole network: .* network.select"):
        load_network(SMALL[1:], {})
    other = Network.of({"stem": SMALL["stem"], "stage1/0": SMALL["stem"], "head": SMALL["head"]})
    with pytest.raises(ValueError, match=r"block 'stage1/0' \(Stem\) is not of the zoo"):
        network_to_torch(other, {})


def test_other_variables_are_refused():
    variables = zeros(SMALL)
    del variables["params"]["stem"]
    with pytest.raises(ValueError, match="params/stem/conv/conv/kernel is missing"):
        network_to_torch(SMALL, variables)


def test_the_names_are_those_of_a_code_base_that_has_the_network(weights):
    assert code_base(PADDED) == "pytorch_resnet_cifar10" and list(state(PADDED, weights))[-1] == "linear.bias"
    found = {name: code_base(create(name, classes=5)) for name in (*NETWORKS, "vit_ti_16", "vit_ti16", "vgg11_bn")}
    of_imagenet = ("resnet18", "mobilenetv2", "vit_ti_16", "vgg11_bn")
    assert found == {
        **dict.fromkeys(NETWORKS, "mdistiller"), **dict.fromkeys(of_imagenet, "torchvision"), "vit_ti16": None
    }  # fmt: skip
