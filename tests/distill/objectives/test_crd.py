"""Contrastive representation distillation: its memory, its negatives and its loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objectives.crd import CRD, crd_loss, remember


def initialise(objective, batch, examples):
    return objective.init(jax.random.key(0), batch, examples=examples)


def test_memory_by_hand():
    memory = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = remember(memory, jnp.array([2, 0]), jnp.array([[1.0, 0.0], [0.0, 1.0]]), momentum=0.75)
    # 3/4 (.6, .8) + 1/4 (1, 0) = (.7, .6), and 3/4 (1, 0) + 1/4 (0, 1) = (.75, .25); the second stays.
    expected = [[0.75 / 0.625**0.5, 0.25 / 0.625**0.5], [0, 1], [0.7 / 0.85**0.5, 0.6 / 0.85**0.5]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_loss_by_hand():
    positive, negative = jnp.array([[0.5], [0.25]]), jnp.array([[0.125, 1.0], [0.5, 0.75]])
    counted = jnp.array([[True, True], [False, True]])
    # N = 8; the first has m = 2 negatives and m/N = 1/4, the second 1 and 1/8.
    first = -np.log(0.5 / 0.75) - np.log(0.25 / 0.375) - np.log(0.25 / 1.25)
    second = -np.log(0.25 / 0.375) - np.log(0.125 / 0.875)
    found = crd_loss(positive, negative, counted, examples=8)
    np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-5)


@pytest.mark.long
def test_a_step_by_hand(training_batches, examples):
    batch, objective = training_batches(), CRD(dim=4, negatives=5)
    variables = initialise(objective, batch, examples)
    memory = {**variables["batch_stats"]["memory"]}
    assert memory["student"].shape == memory["teacher"].shape == (examples, 4)
    assert (memory["labels"] == -1).all()
    memory["labels"] = memory["labels"].at[10].set(0)  # another image, of class 0, was seen before
    variables = {**variables, "batch_stats": {"memory": memory}}
    found = objective.loss(variables, batch)
    metrics, batch_stats = found.metrics, found.batch_stats

    drawn = np.asarray(jax.random.randint(batch.rng, (6, 5), 0, examples))
    indices, labels = np.asarray(batch.indices), np.asarray(batch.labels)
    known = np.full(examples, -1)
    known[10] = 0
    known[indices] = labels
    counted = known[drawn] != labels[:, None]
    assert not counted.all()
    expected, new = 0.0, {}
    for side, other, pooled in (
        ("student", "teacher", batch.student.pooled),
        ("teacher", "student", batch.teacher.pooled),
    ):
        dense = variables["params"][side]["linear"]["dense"]
        v = np.asarray(pooled, np.float64) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        scores = np.exp(v @ np.asarray(memory[other]).T / 0.07)
        positive = scores[np.arange(6), indices]
        negative = np.take_along_axis(scores, drawn, axis=1)
        z = examples * np.concatenate([positive, negative[counted]]).mean()
        np.testing.assert_allclose(batch_stats["memory"][f"{side}_z"], z, rtol=1e-4)
        for i in range(6):
            noise = counted[i].sum() / examples
            p, q = positive[i] / z, negative[i][counted[i]] / z
            expected -= (np.log(p / (p + noise + 1e-7)) + np.log(noise / (q + noise + 1e-7)).sum()) / 6
        rows = 0.5 * np.asarray(memory[side])[indices] + 0.5 * v
        new[side] = np.asarray(memory[side]).copy()
        new[side][indices] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(metrics["distillation"], expected, rtol=1e-4)
    for side, array in new.items():
        np.testing.assert_allclose(batch_stats["memory"][side], array, atol=1e-5)
    np.testing.assert_array_equal(batch_stats["memory"]["labels"], known)


@pytest.mark.long
def test_z_is_set_once(training_batches, examples):
    batch, objective = training_batches(), CRD(dim=4)
    variables = initialise(objective, batch, examples)
    first = objective.loss(variables, batch).batch_stats
    again = dataclasses.replace(batch, rng=jax.random.key(8))
    second = objective.loss({**variables, "batch_stats": first}, again).batch_stats
    for side in ("student", "teacher"):
        assert first["memory"][f"{side}_z"] > 0
        assert second["memory"][f"{side}_z"] == first["memory"][f"{side}_z"]
        assert np.abs(second["memory"][side] - first["memory"][side]).max() > 0


@pytest.mark.parametrize(("negatives", "examples", "drawn"), [(16384, 11, 10), (3, 11, 3), (11, 11, 10)])
def test_negatives_are_limited_by_the_training_set(negatives, examples, drawn, training_batches, monkeypatch):
    batch, objective = training_batches(), CRD(dim=4, negatives=negatives)
    shapes = []
    original = jax.random.randint
    monkeypatch.setattr(
        jax.random, "randint", lambda key, shape, *rest: shapes.append(shape) or original(key, shape, *rest)
    )
    objective.loss(initialise(objective, batch, examples), batch)
    assert shapes == [(6, drawn)]


def test_images_of_the_same_class_are_not_counted(training_batches, examples):
    """With all images known to be of one class there are no negatives left, and p / (p + 1e-7) of the positives."""
    batch, objective = training_batches(), CRD(dim=4, temperature=1.0)
    variables = initialise(objective, batch, examples)
    memory = {**variables["batch_stats"]["memory"], "labels": jnp.zeros(examples, jnp.int32)}
    batch = dataclasses.replace(batch, labels=jnp.zeros_like(batch.labels))
    metrics = objective.loss({**variables, "batch_stats": {"memory": memory}}, batch).metrics
    np.testing.assert_allclose(metrics["distillation"], 0, atol=1e-4)


def test_a_training_set_of_one_is_refused(training_batches):
    with pytest.raises(ValueError, match="a training set of 1 image: .* use 2 or more"):
        initialise(CRD(), training_batches(), 1)
