"""The heads of DGL and PredSim against a computation layer by layer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.local import cut
from kd_local.local.heads import local_head
from kd_local.local.mlp_heads import pooling_window
from kd_local.models import create
from tests.support import tiny

IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def normalised(x: np.ndarray, params, statistics) -> np.ndarray:
    """Batch normalisation over all axes but the last, in evaluation mode, then ReLU."""
    scaled = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5) * params["scale"] + params["bias"]
    return np.maximum(scaled, 0)


def head_of(kind: str, shape: tuple[int, ...]):
    head = local_head(kind, outputs=5)
    variables = jax.tree.map(
        lambda x: np.random.default_rng(x.size).uniform(0.1, 1, x.shape),
        jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)),
    )
    return head, variables


@jax.numpy_dtype_promotion("standard")
def test_the_head_of_dgl_layer_by_layer():
    x = np.random.default_rng(0).standard_normal((3, 16, 16, 4))
    head, variables = head_of("dgl", x.shape[1:])
    params, statistics = variables["params"], variables["batch_stats"]
    y = x.reshape(3, 4, 4, 4, 4, 4).mean((2, 4))  # 16x16 to 4x4
    for name in ("conv0", "conv1", "conv2"):
        y = normalised(y @ params[name]["conv"]["kernel"][0, 0], params[name]["norm"], statistics[name]["norm"])
    y = y.reshape(3, 2, 2, 2, 2, 4).mean((2, 4))  # to 2x2
    y = y.transpose(0, 3, 1, 2).reshape(3, 16)
    for name in ("hidden0", "hidden1"):
        assert set(params[name]["dense"]) == {"kernel"}
        y = normalised(y @ params[name]["dense"]["kernel"], params[name]["norm"], statistics[name]["norm"])
    y = y @ params["linear"]["dense"]["kernel"] + params["linear"]["dense"]["bias"]
    with jax.enable_x64(True):
        np.testing.assert_allclose(head.apply(variables, jnp.asarray(x), train=False), y, rtol=1e-10)


def test_the_heads_of_dgl_have_the_published_number_of_parameters():
    cut_network = cut(create("resnet32", classes=10), 16, classes=10, context="R0", head="dgl")
    variables = jax.eval_shape(lambda: cut_network.init(jax.random.key(0), IMAGES))
    heads = [part["params"]["head"] for part in variables.values() if "head" in part["params"]]
    assert sum(leaf.size for leaf in jax.tree.leaves(heads)) == 838_294


@pytest.mark.parametrize(("size", "hidden"), [(1, 4), (4, 4), (5, 16), (7, 16), (32, 16)])
def test_the_hidden_units_of_dgl_follow_the_resolution(size, hidden):
    head, x = local_head("dgl", outputs=5), jax.ShapeDtypeStruct((2, size, size, 4), jnp.float32)
    logits, variables = jax.eval_shape(partial(head.init_with_output, train=True), jax.random.key(0), x)
    assert variables["params"]["hidden0"]["dense"]["kernel"].shape == (hidden, hidden)
    assert logits.shape == (2, 5)


@jax.numpy_dtype_promotion("standard")
def test_the_head_of_predsim_layer_by_layer():
    x = np.random.default_rng(0).standard_normal((3, 16, 16, 8))  # 8 * 4 * 8 = 256 are too few, 8 * 8 * 8 = 512 fit
    head, variables = head_of("pool", x.shape[1:])
    pooled = x.reshape(3, 8, 2, 8, 2, 8).mean((2, 4)).transpose(0, 3, 1, 2).reshape(3, 512)
    dense = variables["params"]["linear"]["dense"]
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            head.apply(variables, jnp.asarray(x), train=False), pooled @ dense["kernel"] + dense["bias"], rtol=1e-10
        )


@pytest.mark.parametrize(
    ("shape", "features", "window"),
    [
        ((32, 32, 16), 512, (8, 4)),
        ((16, 16, 32), 512, (4, 4)),
        ((8, 8, 64), 512, (4, 2)),
        ((8, 8, 64), 1024, (2, 2)),
        ((7, 7, 64), 512, (4, 2)),  # 64 * 2 * 4
        ((8, 8, 2), 512, (1, 1)),
        ((2, 2, 600), 512, (2, 2)),  # no window leaves 512
    ],
)
def test_the_window_is_doubled_in_height_first(shape, features, window):
    assert pooling_window(shape, features) == window


def test_a_width_multiplies_the_features_of_the_heads():
    x = jnp.zeros((1, 8, 8, 64))
    shapes = {
        kind: jax.eval_shape(
            lambda kind=kind: local_head(kind, outputs=5, width=0.5).init(jax.random.key(0), x, train=False)
        )["params"]
        for kind in ("dgl", "pool")
    }
    assert shapes["dgl"]["conv0"]["conv"]["kernel"].shape == (1, 1, 64, 32)
    assert shapes["pool"]["linear"]["dense"]["kernel"].shape == (256, 5)


def test_tiny_networks_train_with_these_heads():
    for kind in ("dgl", "pool"):
        cut_network = cut(tiny.network(), 2, classes=4, context="R0", head=kind)
        variables = tiny.variables(cut_network)
        loss = lambda v, cut_network=cut_network: cut_network.losses(v, *tiny.batch(classes=4)).losses
        assert all(np.isfinite(value) for value in jax.jit(loss)(variables).values())
