"""The weights of MAN++ by the authors' names."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_local.interop import from_torch, to_torch
from kd_local.local import Momentum, cut
from kd_local.models import create


def test_averages_and_heads_are_named_after_the_block_that_follows():
    cut_network = cut(
        create("resnet8", classes=10),
        classes=10,
        boundaries=("stem", "stage1/0", "stage2/0"),
        context="R0",
        head="1c1f",
        auxiliary=Momentum(scale="trained"),
    )
    shapes = jax.eval_shape(cut_network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: random.standard_normal(x.shape), shapes)
    arrays = to_torch(cut_network, variables)
    jax.tree.map(np.testing.assert_array_equal, from_torch(cut_network, arrays, dtype=np.float64), variables)
    # A checkpoint of the authors' code also has heads that the method does not use.
    from_torch(cut_network, {**arrays, "aux_classifier_1_0.head.0.weight": np.zeros(3)})
    theirs = variables["average01"]["params"]["conv1"]["conv"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(arrays["EMA_Net.0.conv1.weight"], theirs)
    running = variables["module01"]["batch_stats"]["average"]["conv1"]["norm"]["mean"]
    np.testing.assert_array_equal(arrays["EMA_Net.0.bn1.running_mean"], running)
    assert arrays["ema_s_first"].shape == ()
    assert {name.split(".conv1")[0] for name in arrays if ".conv1.weight" in name and "layer" not in name} == {
        "LB_first", "EMA_first", "LB.0", "EMA_Net.0", "LB.1", "EMA_Net.1"
    }  # fmt: skip
    heads = {name.split(".")[0] for name in arrays if name.startswith("aux_classifier_")}
    assert heads == {"aux_classifier_0_0", "aux_classifier_2_0", "aux_classifier_3_0"}
    assert "fc64.weight" in arrays
