"""Knowledge review: fusion, resizing and the hierarchical context loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objectives.registry import OBJECTIVES
from kd_local.distill.objectives.reviewkd import ABF, hcl_loss, resize_nearest
from kd_local.models.layers import average_pool_to


def test_hcl_of_a_1x1_map_is_the_squared_difference():
    student, teacher = jnp.full((2, 1, 1, 3), 3.0), jnp.ones((2, 1, 1, 3))
    np.testing.assert_allclose(hcl_loss(student, teacher), 4.0)


@pytest.mark.parametrize(("size", "levels"), [(2, (1,)), (4, (2, 1)), (8, (4, 2, 1))])
def test_hcl_by_its_definition(size, levels):
    student, teacher = np.random.default_rng(0).standard_normal((2, 3, size, size, 2)).astype(np.float32)
    weights = [1.0, *(0.5 ** (i + 1) for i in range(len(levels)))]
    pooled = [student - teacher, *(average_pool_to(jnp.asarray(student - teacher), (n, n)) for n in levels)]
    expected = sum(w * np.square(x).mean() for w, x in zip(weights, pooled, strict=True)) / sum(weights)
    np.testing.assert_allclose(hcl_loss(jnp.asarray(student), jnp.asarray(teacher)), expected, rtol=1e-5)


def test_nearest_by_hand():
    x = jnp.arange(3.0).reshape(1, 3, 1, 1)
    rows = {1: [0], 2: [0, 1], 4: [0, 0, 1, 2], 6: [0, 0, 1, 1, 2, 2]}
    for size, expected in rows.items():
        np.testing.assert_array_equal(resize_nearest(x, (size, 1)).ravel(), expected)
        np.testing.assert_array_equal(resize_nearest(x.transpose(0, 2, 1, 3), (1, size)).ravel(), expected)


@pytest.mark.parametrize("size", [8, 4, 16])
@pytest.mark.parametrize("deeper", [None, 1, 4, 8])
def test_abf_shapes(size, deeper):
    x = jnp.ones((2, 8, 8, 3))
    more = () if deeper is None else (jnp.ones((2, deeper, deeper, 5)),)
    module = ABF(middle=5, shape=(size, size, 7))
    variables = module.init(jax.random.key(0), x, *more, train=False)
    output, handed_on = module.apply(variables, x, *more, train=False)
    assert (output.shape, handed_on.shape) == ((2, size, size, 7), (2, size, size, 5))
    assert ("attention" in variables["params"]) == (deeper is not None)


def test_abf_weighs_both():
    """With an attention of no weights, both count a half; with a large bias, one of them alone."""
    rng = np.random.default_rng(0)
    x, deeper = (jnp.asarray(rng.standard_normal((2, 4, 4, 5)), jnp.float32) for _ in range(2))
    module = ABF(middle=5, shape=(4, 4, 7))
    variables = module.init(jax.random.key(0), x, deeper, train=False)
    own = x @ variables["params"]["conv1"]["conv"]["kernel"][0, 0] / np.sqrt(1 + 1e-5)

    def handed_on(*bias):
        attention = {"kernel": jnp.zeros((1, 1, 10, 2)), "bias": jnp.array(bias)}
        params = {**variables["params"], "attention": attention}
        return module.apply({**variables, "params": params}, x, deeper, train=False)[1]

    np.testing.assert_allclose(handed_on(0.0, 0.0), (own + deeper) / 2, atol=1e-5)
    np.testing.assert_allclose(handed_on(99.0, -99.0), own, atol=1e-5)
    np.testing.assert_allclose(handed_on(-99.0, 99.0), deeper, atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("preactivations", [False, True])
def test_reads(preactivations, training_batches, examples):
    """The student's features or pre-activations, the pooled ones of both, and the teacher's pre-activations."""
    batch, objective = training_batches(), OBJECTIVES["reviewkd"](preactivations=preactivations, max_middle=6)
    variables = objective.init(jax.random.key(0), batch, examples=examples)
    assert list(variables["params"]) == ["pooled", "stage3", "stage2", "stage1"]
    assert variables["params"]["stage1"]["conv1"]["conv"]["kernel"].shape == (1, 1, 4, 6)

    @jax.jit
    @jax.grad
    def gradients(both):
        return objective.loss(variables, dataclasses.replace(batch, student=both[0], teacher=both[1])).total

    student, teacher = gradients((batch.student, batch.teacher))
    used = [np.abs(x).max() > 0 for x in student.features]
    used_before = [np.abs(x).max() > 0 for x in student.preactivations]
    three, none = [False, True, True, True], [False] * 4
    assert (used, used_before) == ((none, three) if preactivations else (three, none))
    assert [np.abs(x).max() > 0 for x in teacher.preactivations] == three
    assert all(np.abs(x).max() > 0 for x in (student.pooled, teacher.pooled))
    assert not any(np.abs(x).max() > 0 for x in teacher.features)
