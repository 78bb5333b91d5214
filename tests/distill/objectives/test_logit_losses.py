"""KD, DKD, MLKD and DIST against hand calculations and plain numpy."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.objectives.dist import dist_loss
from kd_local.distill.objectives.distances import DISTANCES, LOGIT_OBJECTIVES, chosen_distance, logit_distance
from kd_local.distill.objectives.dkd import dkd_loss
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.objectives.mlkd import batch_correlation_loss, class_correlation_loss, mlkd_loss
from kd_local.distill.objectives.registry import OBJECTIVES
from kd_local.distill.sample_weights import batch_mean
from kd_local.distill.standardisation import standardise
from kd_local.distill.stone_loss import StoneLoss

RNG = np.random.default_rng(0)
STUDENT, TARGET = 3 * RNG.standard_normal((2, 4, 6))
LABELS = np.array([0, 4, 2, 4])
OF_DISTANCE = {name: {"temperature": 2.0} if kind.tempered else {} for name, kind in LOGIT_OBJECTIVES.items()}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def test_kd_by_hand():
    # Softened by T = 2: (1/2, 1/2) of the student, (1/4, 3/4) of the teacher.
    student, target = jnp.zeros((1, 2)), 2 * jnp.log(jnp.array([[1.0, 3.0]]))
    expected = 4 * (0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    np.testing.assert_allclose(kd_loss(student, target, temperature=2.0), expected, rtol=1e-14)


def test_kd_is_a_mean_of_divergences():
    expected = 9 * np.mean([divergence(*rows) for rows in zip(softmax(TARGET / 3), softmax(STUDENT / 3), strict=True)])
    np.testing.assert_allclose(kd_loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), temperature=3.0), expected)


def test_kd_gradient_is_the_difference_of_probabilities():
    gradient = jax.grad(kd_loss)(jnp.asarray(STUDENT), jnp.asarray(TARGET), temperature=4.0)
    np.testing.assert_allclose(gradient, 4 * (softmax(STUDENT / 4) - softmax(TARGET / 4)) / 4, atol=1e-14)


def test_standardise_by_hand():
    root = np.sqrt(2.5)  # the unbiased variance of 1..5
    expected = np.arange(-2, 3) / (root + 1e-7)
    np.testing.assert_allclose(standardise(jnp.arange(1.0, 6.0)[None]), expected[None], rtol=1e-14)


def test_standardise_removes_shift_and_scale():
    logits = jnp.asarray(STUDENT)
    np.testing.assert_allclose(standardise(7 * logits - 3), standardise(logits), rtol=1e-6)
    gradient = jax.grad(lambda x: (standardise(x) * logits).sum())(jnp.ones_like(logits))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", DISTANCES)
def test_standardised_distances(name):
    student, target, labels = jnp.asarray(STUDENT), jnp.asarray(TARGET), jnp.asarray(LABELS)
    plain = logit_distance(name, **OF_DISTANCE[name])
    of_standardised = logit_distance(name, **OF_DISTANCE[name], standardise=True)
    expected = plain(standardise(student), standardise(target), labels)
    if name == "mlkd":  # of which the predictions alone are standardised
        expected = kd_loss(standardise(student), standardise(target), temperature=2.0)
        for correlation in (batch_correlation_loss, class_correlation_loss):
            expected += correlation(student, target, temperature=2.0)
    np.testing.assert_allclose(of_standardised(student, target, labels), expected, rtol=1e-12)
    assert abs(of_standardised(student, target, labels) / plain(student, target, labels) - 1) > 1e-2


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (1.5, 8.0)])
def test_dkd_by_its_definition(alpha, beta):
    each = []
    for student, target, label in zip(softmax(STUDENT / 4), softmax(TARGET / 4), LABELS, strict=True):
        p, q = np.delete(target, label), np.delete(student, label)
        tckd = divergence([target[label], p.sum()], [student[label], q.sum()])
        each.append(alpha * tckd + beta * divergence(p / p.sum(), q / q.sum()))
    found = dkd_loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), jnp.asarray(LABELS), alpha=alpha, beta=beta)
    np.testing.assert_allclose(found, 16 * np.mean(each), rtol=1e-12)


def test_dkd_with_the_weight_of_equation_6_is_kd():
    """Eq. 6: KD = TCKD + (1 - the teacher's probability of the label) NCKD."""
    for i in range(len(LABELS)):
        row = slice(i, i + 1)
        student, target, labels = jnp.asarray(STUDENT[row]), jnp.asarray(TARGET[row]), jnp.asarray(LABELS[row])
        rest = float(1 - softmax(TARGET / 4)[i, LABELS[i]])
        found = dkd_loss(student, target, labels, alpha=1.0, beta=rest)
        np.testing.assert_allclose(found, kd_loss(student, target), rtol=1e-12)


@pytest.mark.long
def test_dkd_of_certain_predictions():
    certain = jnp.float32(200) * jax.nn.one_hot(jnp.array([0, 1]), 4, dtype=jnp.float32)
    labels = jnp.array([0, 1], jnp.int32)
    value, gradient = jax.value_and_grad(dkd_loss)(certain, -certain, labels, temperature=1.0)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_correlations_by_their_definition():
    p, q = softmax(TARGET / 2), softmax(STUDENT / 2)
    batch = sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for i in range(4) for j in range(4)) / 4
    classes = sum((p[:, i] @ p[:, j] - q[:, i] @ q[:, j]) ** 2 for i in range(6) for j in range(6)) / 6
    student, target = jnp.asarray(STUDENT), jnp.asarray(TARGET)
    np.testing.assert_allclose(batch_correlation_loss(student, target, temperature=2.0), batch, rtol=1e-12)
    np.testing.assert_allclose(class_correlation_loss(student, target, temperature=2.0), classes, rtol=1e-12)
    expected = kd_loss(student, target, temperature=2.0) + batch + classes
    np.testing.assert_allclose(mlkd_loss(student, target, temperatures=(2.0,)), expected, rtol=1e-12)


def test_mlkd_sums_over_temperatures():
    student, target = jnp.asarray(STUDENT), jnp.asarray(TARGET)
    each = [mlkd_loss(student, target, temperatures=(t,)) for t in (2.0, 3.0, 4.0, 5.0, 6.0)]
    np.testing.assert_allclose(mlkd_loss(student, target), sum(each), rtol=1e-12)


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (2.0, 3.0, 4.0)])
def test_dist_by_pearson_correlations(beta, gamma, temperature):
    p, q = softmax(TARGET / temperature), softmax(STUDENT / temperature)
    between = 1 - np.mean([np.corrcoef(p[i], q[i])[0, 1] for i in range(4)])
    within = 1 - np.mean([np.corrcoef(p[:, j], q[:, j])[0, 1] for j in range(6)])
    found = dist_loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), beta=beta, gamma=gamma, temperature=temperature)
    # Their 1e-8 in the denominator is felt where probabilities are small.
    np.testing.assert_allclose(found, temperature**2 * (beta * between + gamma * within), rtol=1e-5)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_equals_the_loss_of_its_objective(name, training_batches):
    batch = training_batches(dtype="float64")
    numbers = {"temperatures": (2.0,)} if name == "mlkd" else OF_DISTANCE[name]
    metrics = OBJECTIVES[name](**numbers, standardise=True).loss({}, batch).metrics
    distance = logit_distance(name, **OF_DISTANCE[name], standardise=True)
    found = distance(batch.student.logits, batch.teacher.logits, batch.labels)
    np.testing.assert_allclose(found, metrics["distillation"], rtol=1e-12)
    if name in ("kd", "dkd", "mlkd", "dist", "gdkd"):
        np.testing.assert_allclose(distance(batch.student.logits, batch.student.logits, batch.labels), 0, atol=1e-5)


@pytest.mark.parametrize("name", ["nkd", "ttm", "wttm", "ofa_logits"])
def test_a_distance_without_a_temperature_refuses_one(name):
    text = f"temperature is 2.0, but the distance {name} compares logits at temperature 1: leave it out"
    for distance in (logit_distance, partial(chosen_distance, standardise=False, entropy_weight="none")):
        with pytest.raises(ValueError, match=text):
            distance(name, temperature=2.0)
    student, target, labels = jnp.asarray(STUDENT), jnp.asarray(TARGET), jnp.asarray(LABELS)
    # The default of Block-KD and of local distillation, which is one for all distances.
    chosen = chosen_distance(name, temperature=4.0, standardise=False, entropy_weight="none")
    assert chosen(student, target, labels) == logit_distance(name)(student, target, labels)


def test_distances_out_of_range_are_refused():
    with pytest.raises(ValueError, match="unknown logit distance 'kdd': use kd, dkd, .* or ofa_logits .nearest: kd"):
        logit_distance("kdd", temperature=4.0)
    with pytest.raises(ValueError, match=r"temperature is 0.0: use a number in \[0.001, 10000\]"):
        logit_distance("kd", temperature=0.0)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 300.0, 3000.0, 1e4])
@pytest.mark.parametrize(
    "loss", [kd_loss, lambda *logits, temperature: dkd_loss(*logits, jnp.asarray(LABELS), temperature=temperature)]
)
def test_a_divergence_in_float32_is_that_of_float64(loss, temperature):
    exact = loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), temperature=temperature)
    single = loss(jnp.float32(STUDENT), jnp.float32(TARGET), temperature=temperature)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, rtol=2e-3 if temperature > 300 else 1e-4)
    assert single > 0


def test_equal_logits_have_no_divergence():
    for temperature in (1.0, 1e4):
        assert kd_loss(jnp.float32(TARGET), jnp.float32(TARGET), temperature=temperature) == 0


def test_dkd_of_one_class_is_refused():
    with pytest.raises(ValueError, match="1 class: dkd compares a label's class with the others"):
        dkd_loss(jnp.zeros((4, 1)), jnp.zeros((4, 1)), jnp.zeros(4, jnp.int32))


def test_too_few_classes_are_refused_before_a_step(training_batches):
    batch = training_batches()
    text = "k is 7: use fewer than the 7 classes, so that some are not among the k"
    with pytest.raises(ValueError, match=text):
        OBJECTIVES["gdkd"](k=7).init(jax.random.key(0), batch)
    two = jnp.zeros((4, 2), jnp.float32)
    few = replace(batch, student=replace(batch.student, logits=two), teacher=replace(batch.teacher, logits=two))
    with pytest.raises(ValueError, match="k is 5: use fewer than the 2 classes"):
        OBJECTIVES["block_kd"](distance="gdkd").init(jax.random.key(0), few)
    with pytest.raises(ValueError, match="k is 5: use fewer than the 2 classes"):
        StoneLoss(distance="gdkd").check(two)
    with pytest.raises(ValueError, match="temperature is 2.0, but the distance ttm compares logits at temperature 1"):
        StoneLoss(distance="ttm", temperature=2.0)


def test_a_distance_has_the_hyper_parameters_of_its_class():
    @dataclass(frozen=True)
    class Squares(LogitObjective):
        def distance(self, student, target, labels, sample_weights=None):
            return batch_mean(jnp.square(student - target).mean(axis=-1), sample_weights)

    squares = Squares.as_distance().weighted_distance(jnp.asarray(STUDENT), jnp.asarray(TARGET), jnp.asarray(LABELS))
    np.testing.assert_allclose(squares, np.mean((STUDENT - TARGET) ** 2), rtol=1e-12)
    for name, value in (("standardise", True), ("entropy_weight", "100"), ("temperature", 2.0)):
        with pytest.raises(ValueError, match=f"{name} is {value}, but Squares has no {name}: leave it out"):
            Squares.as_distance(**{name: value})
