"""Connectors, and pairs of stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.connector import Connector
from kd_local.distill.stages import at_smaller_resolution, pair_stages
from kd_local.models.layers import average_pool_to

X = jax.random.normal(jax.random.key(0), (5, 8, 8, 3))


def normalised(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A 1x1 convolution and batch normalisation as it starts, in training mode."""
    y = np.asarray(x) @ np.asarray(kernel)[0, 0]
    return (y - y.mean(axis=(0, 1, 2))) / np.sqrt(y.var(axis=(0, 1, 2)) + 1e-5)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("size", [8, 4, 2, 16, 5, 3, 12])
def test_connector(size, relu):
    connector = Connector((size, size, 6), relu=relu)
    variables = connector.init(jax.random.key(1), X, train=False)
    assert jax.tree.map(jnp.shape, variables["params"]["conv"]["conv"]) == {"kernel": (1, 1, 3, 6)}  # no bias
    found, updated = connector.apply(variables, X, train=True, mutable=["batch_stats"])
    assert found.shape == (5, size, size, 6)
    if size in (4, 2):
        x = average_pool_to(X, (size, size))
    else:
        x = jax.image.resize(X, (5, size, size, 3), "bilinear") if size < 8 else X
    expected = normalised(x, variables["params"]["conv"]["conv"]["kernel"])
    expected = np.maximum(expected, 0) if relu else expected
    if size > 8:
        expected = jax.image.resize(expected, (5, size, size, 6), "bilinear")
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (found >= 0).all() == relu
    mean = updated["batch_stats"]["conv"]["norm"]["mean"]
    np.testing.assert_allclose(
        mean, 0.1 * (np.asarray(x) @ variables["params"]["conv"]["conv"]["kernel"][0, 0]).mean((0, 1, 2)), atol=1e-6
    )


def test_connector_of_a_long_map():
    connector = Connector((2, 4, 6))
    variables = connector.init(jax.random.key(1), X, train=False)
    pooled = average_pool_to(X, (2, 4))
    np.testing.assert_allclose(
        connector.apply(variables, X, train=False), connector.apply(variables, pooled, train=False), atol=1e-6
    )


@pytest.mark.parametrize(
    ("student", "teacher", "stem", "pairs"),
    [
        (4, 4, False, ((1, 1), (2, 2), (3, 3))),
        (4, 4, True, ((0, 0), (1, 1), (2, 2), (3, 3))),
        (4, 5, False, ((1, 2), (2, 3), (3, 4))),
        (5, 4, False, ((2, 1), (3, 2), (4, 3))),
        (5, 4, True, ((1, 0), (2, 1), (3, 2), (4, 3))),
        (2, 5, False, ((1, 4),)),
        (1, 5, True, ((0, 4),)),
    ],
)
def test_pairs(student, teacher, stem, pairs, outputs):
    each = [outputs(0, ((2, 3),) * count) for count in (student, teacher)]
    assert pair_stages(*each, stem=stem) == pairs


def test_networks_without_stages_to_pair_are_refused(outputs):
    one, four = outputs(0, ((2, 3),)), outputs(0, ((2, 3),) * 4)
    with pytest.raises(
        ValueError, match="a student of 4 and a teacher of 1 stages, stem included, have no stages to pair: expected 2"
    ):
        pair_stages(four, one)


def test_the_smaller_resolution():
    small = jnp.ones((5, 4, 12, 2))
    student, teacher = at_smaller_resolution(X, small)
    assert (student.shape, teacher.shape) == ((5, 4, 8, 3), (5, 4, 8, 2))
    np.testing.assert_allclose(student, average_pool_to(X, (4, 8)))
    again = at_smaller_resolution(small, X)
    np.testing.assert_allclose(again[1], student)
