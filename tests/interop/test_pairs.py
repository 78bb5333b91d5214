"""Weights of HPFF and MLAAN in the authors' names: read, written, and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.interop import pairs_from_torch, pairs_to_torch
from kd_local.local import HPFF, MLAAN, PairTraining, PixelScale, cut
from kd_local.models import create, resnet
from kd_local.state import variables_of

PIXELS = PixelScale(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))
NETWORK = resnet(8, classes=10)
CUT = {"classes": 10, "boundaries": ("stage1/0", "stage2/0"), "context": "R0"}
METHODS = {
    "hpff": PairTraining(cut(NETWORK, **CUT, head="2c2f", decoder=PIXELS), HPFF(), optax.sgd(0.1)),
    "hpff dgl": PairTraining(cut(NETWORK, **CUT, head="dgl"), HPFF(), optax.sgd(0.1)),
    "mlaan": PairTraining(cut(NETWORK, **CUT, head="0c1f"), MLAAN(), optax.sgd(0.1)),
}


def some_variables(method: PairTraining) -> dict:
    images, random = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), np.random.default_rng(0)
    state = jax.eval_shape(method.init, jax.random.key(0), images)
    parts = {name: variables_of(part) for name, part in state.items()}
    return jax.tree.map(lambda x: random.standard_normal(x.shape).astype(np.float32), parts)


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_read_as_they_were_written(name):
    method = METHODS[name]
    variables = some_variables(method)
    found = pairs_from_torch(method, pairs_to_torch(method, variables))
    jax.tree.map(np.testing.assert_array_equal, found, variables)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "hpff",
            {
                "fc64.weight": (10, 64),
                "net_classifier_2_0.head.0.weight": (64, 32, 3, 3),
                "aux_classifier_2_0.head.10.bias": (10,),
                "aux_decoder_2_0.decoders.3.3.weight": (3, 12, 3, 3),
                "layer3.0.downsample.1.running_var": (64,),
            },
        ),
        (
            "mlaan",
            {
                "net_classifier_2_0.fc.weight": (10, 32),
                "aux_classifier_2_0_1.fc.weight": (10, 64),
                "Aug_Net.1.0.conv1.weight": (64, 32, 3, 3),
                "EMA_Net.1.0.bn2.running_mean": (64,),
            },
        ),
    ],
)
def test_names(name, expected):
    method = METHODS[name]
    arrays = pairs_to_torch(method, some_variables(method))
    assert {key: arrays[key].shape for key in expected} == expected


def test_networks_that_are_built_and_never_used_are_ignored_and_others_refused():
    method = METHODS["mlaan"]
    variables = some_variables(method)
    arrays = pairs_to_torch(method, variables)
    unused = ("EMA_Net.0.0.conv1.weight", "EMA_Net.1.1.conv1.weight", "Aug_Net.0.3.conv1.weight")
    built = dict.fromkeys((*unused, "net_classifier_1_0.fc.weight", "aux_classifier_1_0_0.fc.weight"), np.ones(3))
    jax.tree.map(np.testing.assert_array_equal, pairs_from_torch(method, arrays | built), variables)
    with pytest.raises(ValueError, match=r"Aug_Net.1.9.conv1.weight of shape \(3,\) is unexpected"):
        pairs_from_torch(method, arrays | {"Aug_Net.1.9.conv1.weight": np.ones(3)})
    del arrays["Aug_Net.1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"Aug_Net.1.0.conv1.weight is missing"):
        pairs_from_torch(method, arrays)


@pytest.mark.parametrize(
    ("network", "rule", "options", "error"),
    [
        (NETWORK, HPFF(faithful=False), {"decoder": PIXELS}, "PatchHead is not in the authors' code"),
        (NETWORK, HPFF(patches=3), {"decoder": PIXELS}, "use HPFF"),
        (create("vgg8", classes=10), HPFF(), {"boundaries": ("stage0/0", "stage1/0")}, "cut a CIFAR ResNet"),
    ],
)
def test_what_the_authors_do_not_have_is_refused(network, rule, options, error):
    method = PairTraining(cut(network, **{**CUT, **options}), rule, optax.sgd(0.1))
    with pytest.raises(ValueError, match=error):
        pairs_from_torch(method, {})
