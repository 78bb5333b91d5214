"""Losses on two views of each image, against values of their authors' code."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objectives.crld import CRLD, crld_loss
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.objectives.mlkd_two_views import MLKDTwoViews, mlkd_two_views_loss
from kd_local.local.losses import softmax

ROWS, COLUMNS = np.meshgrid(np.arange(4.0), np.arange(10.0), indexing="ij")
LOGITS = (
    3 * np.sin(1.7 * ROWS + 0.9 * COLUMNS),
    4 * np.cos(0.6 * ROWS + 1.3 * COLUMNS) + 0.2 * np.sin(ROWS * COLUMNS),
    3 * np.sin(1.1 * ROWS + 0.7 * COLUMNS + 0.5),
    4 * np.cos(0.8 * ROWS + 1.1 * COLUMNS + 0.3),
)
"""The student's and the teacher's logits of the weak view, then those of the strong view."""


@pytest.fixture
def logits():
    with jax.enable_x64(True):
        yield [jnp.asarray(each) for each in LOGITS]


@pytest.mark.parametrize(
    ("weak", "strong", "within_view", "cross_view"),
    [(0.9, 0.2, 0.0, 5.413954877), (0.42, 0.5, 14.263543463, 2.606992669)],
)
def test_crld_is_that_of_its_authors(logits, weak, strong, within_view, cross_view):
    terms = crld_loss(*logits, weak_threshold=weak, strong_threshold=strong)
    np.testing.assert_allclose(2.0 * terms["within_view"], within_view, rtol=1e-9)
    np.testing.assert_allclose(0.5 * terms["cross_view"], cross_view, rtol=1e-9)


def test_crld_of_all_images_is_the_sum_of_kd(logits):
    student, target, student_strong, target_strong = logits
    terms = crld_loss(*logits, weak_threshold=0.0, strong_threshold=0.0)
    within = kd_loss(student, target) + kd_loss(student_strong, target_strong)
    cross = kd_loss(student_strong, target) + kd_loss(student, target_strong)
    np.testing.assert_allclose((terms["within_view"], terms["cross_view"]), (within, cross), rtol=1e-12)


def test_mlkd_is_that_of_its_authors(logits):
    terms = mlkd_two_views_loss(*logits)
    expected = {"predictions": 41.943646891, "classes": 0.027582641, "samples": 0.017118408}
    for name, value in expected.items():
        np.testing.assert_allclose(0.9 * terms[name], value, rtol=1e-7)


def test_standardised_mlkd_does_not_change_the_correlations(logits):
    plain, standardised = (mlkd_two_views_loss(*logits, standardised=value) for value in (False, True))
    assert plain["classes"] == standardised["classes"]
    assert plain["samples"] == standardised["samples"]
    assert plain["predictions"] > 2 * standardised["predictions"]


@pytest.mark.parametrize("objective", [CRLD(ce_weight=0.7), MLKDTwoViews(ce_weight=0.7)])
def test_the_loss_is_the_weighted_sum_of_its_terms(objective, training_batches):
    batch = training_batches()
    found = objective.loss({}, batch)
    terms = dict(found.metrics)
    weak, strong = terms.pop("cross_entropy"), terms.pop("cross_entropy_strong")
    np.testing.assert_allclose(weak, softmax(batch.student.logits, batch.labels)["loss"], rtol=1e-6)
    np.testing.assert_allclose(strong, softmax(batch.strong.student.logits, batch.labels)["loss"], rtol=1e-6)
    np.testing.assert_allclose(found.task, 0.7 * (weak + strong), rtol=1e-6)
    weights = {"within_view": 2.0, "cross_view": 0.5}
    expected = sum(weights.get(name, 0.9) * term for name, term in terms.items())
    np.testing.assert_allclose(found.distillation, expected, rtol=1e-6)


@pytest.mark.parametrize("objective", [CRLD(), MLKDTwoViews()])
def test_a_batch_with_one_view_is_refused(objective, training_batches):
    with pytest.raises(ValueError, match="the batch has no strong view: set needs_strong_view in the class"):
        objective.loss({}, replace(training_batches(), strong=None))


@pytest.mark.parametrize(
    ("loss", "arguments", "text"),
    [
        (crld_loss, {"weak_threshold": 1.5}, r"weak_threshold is 1.5: use a number in \[0, 1\]"),
        (crld_loss, {"strong_threshold": -0.1}, "strong_threshold is -0.1"),
        (crld_loss, {"temperature": 0.0}, "temperature is 0.0"),
        (mlkd_two_views_loss, {"temperatures": (4.0, 3.0)}, r"temperatures is \(4.0, 3.0\): use 3 or more numbers"),
    ],
)
def test_numbers_out_of_range_are_refused(logits, loss, arguments, text):
    with pytest.raises(ValueError, match=text):
        loss(*logits, **arguments)
