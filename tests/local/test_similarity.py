"""PredSim's loss against a computation image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.local import ContSup, cut
from kd_local.local.similarity import similarity_loss
from kd_local.parallel import compile_step
from tests.support import tiny

LABELS = np.array([0, 2, 0, 1, 2], np.int32)


def cosines(vectors: np.ndarray) -> np.ndarray:
    centred = [vector - vector.mean() for vector in vectors]
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in centred] for b in centred])


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize(
    ("shape", "described"),
    [
        ((5, 3, 2, 4), lambda x: x.reshape(5, 6, 4).std(axis=1, ddof=1)),
        ((5, 3, 2, 3), lambda x: x.reshape(5, -1)),
        ((5, 1, 1, 6), lambda x: x.reshape(5, -1)),
    ],
)
def test_similarity_image_by_image(shape, described):
    x = np.random.default_rng(0).standard_normal(shape)
    expected = np.square(cosines(described(x)) - cosines(np.eye(3)[LABELS])).mean()
    with jax.enable_x64(True):
        np.testing.assert_allclose(similarity_loss(jnp.asarray(x), jnp.asarray(LABELS), 3), expected, rtol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("features", [np.zeros((5, 2, 2, 4)), np.ones((5, 2, 2, 4)), np.zeros((5, 1, 1, 4))])
def test_equal_features_have_a_finite_gradient(features):
    value, gradient = jax.value_and_grad(similarity_loss)(jnp.asarray(features, jnp.float32), jnp.asarray(LABELS), 3)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_predsim_weights_its_two_terms_and_reports_them():
    cut_network = cut(tiny.network(), 2, classes=4, context="R0", head="pool", loss="predsim")
    assert [module.classifies for module in cut_network.modules] == [True, True]
    method = ContSup(cut_network, optax.sgd(0.1))
    images, labels = tiny.batch(classes=4)
    state = method.init(jax.random.key(0), images)
    assert state["module00"]["params"]["similarity"]["conv"]["kernel"].shape == (3, 3, 4, 4)
    assert "similarity" not in state["module01"]["params"]
    assert "similarity" not in method.deployed(state)["module00"]
    _, metrics = compile_step(method, images, labels, state=state)(state, images, labels, jax.random.key(0))
    first = metrics["module00"]
    np.testing.assert_allclose(first["loss"], 0.99 * first["similarity"] + 0.01 * first["cross_entropy"], rtol=1e-6)
    assert set(metrics["module01"]) == {"loss", "accuracy"}
