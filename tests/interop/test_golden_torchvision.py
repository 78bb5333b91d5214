"""The zoo against torchvision's and timm's networks, in float64: `tests/golden/torchvision.npz`."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import load_network, network_to_torch
from kd_local.interop.zoo import classes_of
from kd_local.models import create
from kd_local.models.class_token import class_token_transformer
from kd_local.models.vgg import vgg
from kd_local.networks import apply_block, of_block

pytestmark = pytest.mark.exhaustive

GOLDEN = Path(__file__).parents[1] / "golden" / "torchvision.npz"
CLASSES = 7
NETWORKS = {
    "vit": class_token_transformer(classes=CLASSES, width=24, heads=3, depth=4, patch_size=8),
    "shufflenet_v2_x0_5": create("shufflenet_v2_x0_5", classes=CLASSES),
    "vgg11_bn": vgg(11, classes=CLASSES, small_images=False, hidden=8),
}
NAMES = ("torchvision/vit", "timm/vit", "torchvision/shufflenet_v2_x0_5", "torchvision/vgg11_bn", "timm/vgg11_bn")
# Equal blocks share one compilation.
run = partial(jax.jit, static_argnums=0, static_argnames="train")(apply_block)


@cache
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def arrays_of(name, weights):
    names, shapes = golden()[f"{name}_names"].tolist(), golden()[f"{name}_shapes"].tolist()
    return weights({key: tuple(json.loads(shape)) for key, shape in zip(names, shapes, strict=True)})


def test_every_network_of_the_file_is_tested():
    assert {key.rpartition("_")[0] for key in golden()} == set(NAMES)


@pytest.mark.usually("torchvision/vit", "timm/vit")
@pytest.mark.parametrize("name", NAMES)
@jax.numpy_dtype_promotion("standard")
def test_logits(name, weights):
    network, arrays = NETWORKS[name.partition("/")[2]], arrays_of(name, weights)
    size = int(golden()[f"{name}_size"])
    with jax.enable_x64(True):
        variables = load_network(network, arrays, dtype=np.float64)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, size, size, 3)))
        for block_name, block in network:
            x, _ = run(block, of_block(variables, block_name), x, train=False)
        np.testing.assert_allclose(x, golden()[f"{name}_logits"], rtol=1e-9, atol=1e-9 * np.abs(x).max())


@pytest.mark.usually("torchvision/vit", "torchvision/shufflenet_v2_x0_5")
@pytest.mark.parametrize("name", [name for name in NAMES if "timm" not in name])
def test_conversion_and_back_keeps_names_and_numbers(name, weights):
    network, arrays = NETWORKS[name.partition("/")[2]], arrays_of(name, weights)
    back = network_to_torch(network, load_network(network, arrays))
    assert back.keys() == arrays.keys()
    jax.tree.map(np.testing.assert_array_equal, back, arrays)


def test_the_number_of_classes_is_that_of_the_last_layer(weights):
    for name in ("torchvision/vit", "timm/vit"):
        assert classes_of(NETWORKS["vit"], arrays_of(name, weights)) == CLASSES
    assert classes_of(NETWORKS["vit"], {}) is None


def test_weights_of_other_transformers_are_refused_by_name(weights):
    arrays = arrays_of("timm/vit", weights)
    with pytest.raises(ValueError, match=r"dist_token of shape .* is unexpected"):
        load_network(NETWORKS["vit"], {**arrays, "dist_token": np.zeros((1, 1, 24))})
    with pytest.raises(ValueError, match=r"blocks.0.attn.qkv.weight has shape \(48, 24\), expected \(72, 24\)"):
        load_network(NETWORKS["vit"], {**arrays, "blocks.0.attn.qkv.weight": np.zeros((48, 24))})
    with pytest.raises(
        ValueError, match="no vision transformer with fixed positions and pooled maps: .* use vit_ti_16"
    ):
        load_network(create("vit_ti16", classes=CLASSES), arrays)
