"""The head of MAN++ without reconstruction against a computation layer by layer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.local.heads import local_head


def normalised(x: np.ndarray, params, statistics) -> np.ndarray:
    """Batch normalisation over all axes but the last, in evaluation mode, then ReLU."""
    scaled = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5) * params["scale"] + params["bias"]
    return np.maximum(scaled, 0)


@pytest.mark.long
@jax.numpy_dtype_promotion("standard")
def test_layer_by_layer():
    x = np.random.default_rng(0).standard_normal((3, 16, 16, 4))
    head = local_head("dgl_wide", outputs=5)
    like = jax.eval_shape(partial(head.init, train=False), jax.random.key(0), jnp.zeros((1, 16, 16, 4)))
    variables = jax.tree.map(lambda x: np.random.default_rng(x.size).uniform(-0.1, 1, x.shape), like)
    params, statistics = variables["params"], variables["batch_stats"]
    assert params["conv2"]["conv"]["kernel"].shape == (1, 1, 128, 128)
    assert params["linear0"]["dense"]["kernel"].shape == (128, 512)
    for module in statistics.values():
        module.get("norm", module)["var"] += 0.2  # no variance is negative
    y = x.reshape(3, 8, 2, 8, 2, 4).mean((2, 4))  # 16x16 to 8x8
    for name in ("conv0", "conv1", "conv2"):
        y = normalised(y @ params[name]["conv"]["kernel"][0, 0], params[name]["norm"], statistics[name]["norm"])
    y = y.mean((1, 2))
    for i in range(3):
        dense = params[f"linear{i}"]["dense"]
        y = normalised(y @ dense["kernel"] + dense["bias"], params[f"norm{i}"], statistics[f"norm{i}"])
    y = y @ params["linear3"]["dense"]["kernel"] + params["linear3"]["dense"]["bias"]
    with jax.enable_x64(True):
        np.testing.assert_allclose(head.apply(variables, jnp.asarray(x), train=False), y, rtol=1e-10)


def test_a_smaller_map_keeps_its_size_and_a_width_multiplies_all_layers():
    head, x = local_head("dgl_wide", outputs=5, width=0.25), jax.ShapeDtypeStruct((2, 3, 3, 4), jnp.float32)
    logits, variables = jax.eval_shape(partial(head.init_with_output, train=True), jax.random.key(0), x)
    assert logits.shape == (2, 5)
    assert variables["params"]["conv0"]["conv"]["kernel"].shape == (1, 1, 4, 32)
    assert variables["params"]["linear3"]["dense"]["kernel"].shape == (128, 5)
