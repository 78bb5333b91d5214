import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import from_torch, to_torch
from kd_local.local import HEADS, PixelScale, cut
from kd_local.models import resnet
from kd_local.networks import Network

NETWORK = resnet(8, classes=10, widths=(4, 4, 8, 8))
PIXELS = PixelScale((127.5,) * 3, (127.5,) * 3)
BOUNDARIES = ("stem", "stage1/0", "stage2/0")
BN = ("weight", "bias", "running_mean", "running_var")


@cache
def make(channels: int = 3, **arguments):
    """A cut network and its variables, all with different values."""
    cut_network = cut(NETWORK, classes=10, **{"boundaries": BOUNDARIES, "context": "R0"} | arguments)
    images = jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
    shapes = jax.eval_shape(lambda: cut_network.init(jax.random.key(0), images))
    random = np.random.default_rng(0)
    return cut_network, jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), shapes)


def layers(arrays) -> set[str]:
    return {name.rpartition(".")[0] for name in arrays}


@pytest.mark.usually("arguments3")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"context": "R1E", "loss": "contrast"},
        {"context": "R3", "decoder": PIXELS},
        {"context": "R2E", "decoder": PIXELS, "aux_width": 0.5, "feature_width": 8},
        {"boundaries": ()},
    ],
)
def test_conversion_to_torch_and_back(arguments):
    cut_network, variables = make(**arguments)
    arrays = to_torch(cut_network, variables)
    assert sum(x.size for x in arrays.values()) == sum(x.size for x in jax.tree.leaves(variables))
    back = from_torch(cut_network, arrays)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    jax.tree.map(np.testing.assert_array_equal, to_torch(cut_network, back), arrays)


def test_names_of_the_network():
    blocks = {f"layer{stage}.0.{layer}" for stage in (1, 2, 3) for layer in ("conv1", "bn1", "conv2", "bn2")}
    shortcuts = {f"layer{stage}.0.downsample.{i}" for stage in (2, 3) for i in (0, 1)}
    arrays = to_torch(*make(boundaries=()))
    assert layers(arrays) == {"conv1", "bn1", "fc"} | blocks | shortcuts
    assert arrays["conv1.weight"].shape == (4, 3, 3, 3)
    assert arrays["fc.weight"].shape == (10, 8)
    assert {name for name in arrays if name.startswith("layer2.0.bn1")} == {f"layer2.0.bn1.{name}" for name in BN}


# A convolution has three entries of an nn.Sequential, pooling and flattening have two, and a linear layer has two.
@pytest.mark.usually("0c1f-2", "1c2f-0 1 5 7", "2c2f-0 1 3 4 8 10")
@pytest.mark.parametrize(
    ("head", "places"),
    [
        ("0c1f", "2"),
        ("0c2f", "2 4"),
        ("1c1f", "0 1 5"),
        ("1c2f", "0 1 5 7"),
        ("1c3f", "0 1 5 7 9"),
        ("2c2f", "0 1 3 4 8 10"),
        ("dgl", "1 2 4 5 7 8 12 13 15 16 18"),
        ("dgl_wide", "0 1 3 4 6 7 11 12 14 15 17 18 20"),
        ("pool", "2"),
    ],
)
def test_indices_of_heads(head, places):
    found = layers(to_torch(*make(head=head)))
    for boundary in ("0_0", "1_0", "2_0"):
        prefix = f"aux_classifier_{boundary}.head."
        assert {name for name in found if name.startswith(prefix)} == {prefix + place for place in places.split()}
    assert not any("3_0" in name for name in found)


def test_every_head_has_a_test():
    marks = test_indices_of_heads.pytestmark
    assert tuple(head for head, _ in marks[0].args[1]) == HEADS


@pytest.mark.usually("R2E-encoder_0 encoder_1 resencoder_1_0 encoder_2 resencoder_2_0 resencoder_2_1")
@pytest.mark.parametrize(
    ("context", "encoders"),
    [
        ("E", "encoder_0 encoder_1 encoder_2"),
        ("R1", "resencoder_0_0 resencoder_1_0 resencoder_2_0"),
        ("R2", "resencoder_0_0 resencoder_1_0 resencoder_1_1 resencoder_2_0 resencoder_2_1"),
        ("R2E", "encoder_0 encoder_1 resencoder_1_0 encoder_2 resencoder_2_0 resencoder_2_1"),
    ],
)
def test_numbers_of_encoders(context, encoders):
    found = {name.split(".")[1] for name in layers(to_torch(*make(context=context))) if "cont_sup_node" in name}
    assert found == set(encoders.split())


def test_encoders_have_the_number_of_the_boundary_before_their_module():
    cut_network, variables = make(context="R2E", decoder=PIXELS)
    arrays = to_torch(cut_network, variables)
    params = variables["module03"]["params"]
    for name, ours in {
        "cont_sup_node.encoder_2.encoder.0.weight": params["context0"]["conv1"]["conv"]["kernel"],
        "cont_sup_node.encoder_2.encoder.3.weight": params["context0"]["conv2"]["conv"]["kernel"],
        "cont_sup_node.resencoder_2_0.encoder.0.weight": params["context1"]["conv"]["conv"]["kernel"],
        "cont_sup_node.resencoder_2_1.encoder.0.weight": params["context2"]["conv"]["conv"]["kernel"],
        "decoder_2_0.decoder.0.weight": variables["module02"]["params"]["decoder"]["conv1"]["conv"]["kernel"],
        "decoder_2_0.decoder.3.weight": variables["module02"]["params"]["decoder"]["conv2"]["kernel"],
        "aux_classifier_2_0.head.0.weight": variables["module02"]["params"]["head"]["conv0"]["conv"]["kernel"],
    }.items():
        np.testing.assert_array_equal(arrays[name], np.transpose(ours, (3, 2, 0, 1)), err_msg=name)


def test_unused_modules_of_the_authors_are_ignored():
    cut_network, variables = make()
    arrays = to_torch(cut_network, variables)
    unused = to_torch(*make(context="R2E", decoder=PIXELS))
    assert len(unused) > len(arrays)
    more = unused | arrays | {"bn1.num_batches_tracked": np.zeros((), np.int64)}
    jax.tree.map(np.testing.assert_array_equal, from_torch(cut_network, more), variables)


def test_images_of_one_channel():
    cut_network, variables = make(channels=1, context="R1E", decoder=PixelScale((127.5,), (127.5,)))
    jax.tree.map(np.testing.assert_array_equal, from_torch(cut_network, to_torch(cut_network, variables)), variables)


def test_dtypes():
    cut_network, variables = make()
    arrays = to_torch(cut_network, jax.tree.map(lambda x: np.asarray(x, np.float64), variables))
    assert {x.dtype for x in arrays.values()} == {np.dtype(np.float64)}
    assert {x.dtype for x in jax.tree.leaves(from_torch(cut_network, arrays))} == {np.dtype(np.float64)}
    assert {x.dtype for x in jax.tree.leaves(from_torch(cut_network, arrays, dtype=jnp.float32))} == {
        np.dtype(np.float32)
    }


@pytest.mark.usually("change5-conv1.weight has shape (3,), expected (4, 3, 3, 3)")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fc.weight": np.zeros((100, 8))}, "fc.weight has shape (100, 8), expected (10, 8)"),
        ({"bn1.running_var": None}, "bn1.running_var is missing, expected in shape (4,)"),
        (
            {"layer1.1.conv1.weight": np.zeros((4, 4, 3, 3))},
            "layer1.1.conv1.weight of shape (4, 4, 3, 3) is unexpected",
        ),
        ({"aux_classifier_3_0.head.5.bias": np.zeros(9)}, "aux_classifier_3_0.head.5.bias of shape (9,) is unexpected"),
        (
            {"cont_sup_node.encoder_0.encoder.1.weight": None},
            "cont_sup_node.encoder_0.encoder.1.weight is missing, expected in shape (12,)",
        ),
        ({"conv1.weight": np.zeros(3)}, "conv1.weight has shape (3,), expected (4, 3, 3, 3)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, text):
    cut_network, variables = make(context="E")
    arrays = to_torch(cut_network, variables) | change
    with pytest.raises(ValueError, match=re.escape(text)):
        from_torch(cut_network, {name: array for name, array in arrays.items() if array is not None})


def test_other_variables_are_refused():
    cut_network, variables = make(context="E")
    with pytest.raises(
        ValueError, match="variables of module02 are missing: give those of module00, module01, module02"
    ):
        to_torch(cut_network, {name: part for name, part in variables.items() if name != "module02"})
    headless = {name: {**part, "params": {"blocks": part["params"]["blocks"]}} for name, part in variables.items()}
    with pytest.raises(ValueError, match="params/head/conv0/conv/kernel is missing"):
        to_torch(cut_network, headless)


def test_other_networks_are_refused():
    cut_network, variables = make(context="E", image_encoder="pooled")
    with pytest.raises(
        ValueError, match=r"context network 0 of module01 \(ImageEncoder\) is not in the .* image_encoder='full'"
    ):
        to_torch(cut_network, variables)
    other = Network(("first", *NETWORK.names[1:]), (NETWORK["stage1/0"], *NETWORK.modules[1:]))
    cut_network = cut(other, classes=10, boundaries=(), context="R0")
    with pytest.raises(
        ValueError, match=r"block 'first' \(BasicBlock\) is not in the authors' code: cut a CIFAR ResNet"
    ):
        from_torch(cut_network, {})
