"""Weights of samples by the entropies of the predictions, in every distance of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objectives.distances import DISTANCES, LOGIT_OBJECTIVES, logit_distance
from kd_local.distill.sample_weights import entropy_weights

RNG = np.random.default_rng(0)
STUDENT, TARGET = 3 * RNG.standard_normal((2, 6, 8))
LABELS = np.array([0, 4, 2, 4, 7, 1])
WEIGHTS = RNG.uniform(0.5, 2, 6)
OF_THE_BATCH = ("mlkd", "dist")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def entropy(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits / 3) / np.exp(logits / 3).sum(axis=-1, keepdims=True)
    return -(p * np.log(p)).sum(axis=-1)


@pytest.mark.parametrize(("bound", "largest"), [("log_classes", np.log(8)), ("100", 100.0)])
def test_weights_by_their_definition(bound, largest):
    expected = entropy(TARGET) * (1 + entropy(STUDENT) / largest) / 2
    np.testing.assert_allclose(entropy_weights(jnp.asarray(STUDENT), jnp.asarray(TARGET), bound), expected, rtol=1e-12)


def test_weights_are_largest_for_two_networks_that_know_nothing():
    nothing = jnp.zeros((1, 8))
    np.testing.assert_allclose(entropy_weights(nothing, nothing, "log_classes"), np.log(8), rtol=1e-12)
    assert entropy_weights(nothing, nothing, "none") is None


def test_no_gradient_flows_into_the_weights():
    of = jax.grad(lambda s, t: entropy_weights(s, t, "100").sum(), argnums=(0, 1))
    for gradient in of(jnp.asarray(STUDENT), jnp.asarray(TARGET)):
        np.testing.assert_array_equal(gradient, 0)


def test_certain_predictions_have_finite_weights():
    certain = jnp.float32(1000) * jax.nn.one_hot(jnp.array([3, 1]), 10, dtype=jnp.float32)
    np.testing.assert_array_equal(entropy_weights(certain, certain, "log_classes"), 0)


def test_bounds_that_are_unknown_and_one_class_are_refused():
    logits = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="unknown entropy weight 'log': use none, log_classes or 100"):
        entropy_weights(logits, logits, "log")
    with pytest.raises(ValueError, match="1 class: every entropy is 0, so use 2 classes or more, or entropy_weight"):
        entropy_weights(logits[:, :1], logits[:, :1], "100")


@pytest.mark.parametrize("name", DISTANCES)
def test_a_weight_multiplies_the_loss_of_its_sample(name):
    """Where a loss compares samples with each other, it is multiplied by the mean weight."""
    objective = LOGIT_OBJECTIVES[name]()
    student, target, labels = map(jnp.asarray, (STUDENT, TARGET, LABELS))
    found = objective.distance(student, target, labels, jnp.asarray(WEIGHTS))
    if name not in OF_THE_BATCH:
        each = [objective.distance(student[i : i + 1], target[i : i + 1], labels[i : i + 1]) for i in range(6)]
        np.testing.assert_allclose(found, np.mean(WEIGHTS * np.array(each)), rtol=1e-12)
    plain = objective.distance(student, target, labels)
    for same in (jnp.ones(6), jnp.full(6, 2.0)):
        weighted = objective.distance(student, target, labels, same)
        np.testing.assert_allclose(weighted, same[0] * plain, rtol=1e-12)
    assert abs(found / plain - WEIGHTS.mean()) > 1e-3


def test_correlations_have_the_mean_weight():
    student, target, labels = map(jnp.asarray, (STUDENT, TARGET, LABELS))
    weights = jnp.asarray(WEIGHTS)
    dist = LOGIT_OBJECTIVES["dist"](beta=0.0)
    plain, found = dist.distance(student, target, labels), dist.distance(student, target, labels, weights)
    np.testing.assert_allclose(found, WEIGHTS.mean() * plain, rtol=1e-12)
    mlkd, kd = LOGIT_OBJECTIVES["mlkd"](temperatures=(4.0,)), LOGIT_OBJECTIVES["kd"]()
    plain, found = (
        mlkd.distance(student, target, labels, w) - kd.distance(student, target, labels, w) for w in (None, weights)
    )
    np.testing.assert_allclose(found, WEIGHTS.mean() * plain, rtol=1e-10)


@pytest.mark.parametrize("name", DISTANCES)
def test_the_option_of_an_objective_and_of_a_distance(name, training_batches):
    batch = training_batches(dtype="float64")
    student, target = batch.student.logits, batch.teacher.logits
    weights = entropy_weights(student, target, "100")
    objective = LOGIT_OBJECTIVES[name].as_distance(entropy_weight="100")
    expected = LOGIT_OBJECTIVES[name]().distance(student, target, batch.labels, weights)
    np.testing.assert_allclose(objective.loss({}, batch).metrics["distillation"], expected, rtol=1e-12)
    distance = logit_distance(name, entropy_weight="100")
    np.testing.assert_allclose(distance(student, target, batch.labels), expected, rtol=1e-12)
