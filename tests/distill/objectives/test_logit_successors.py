"""TTM, WTTM, RLD, NKD, GDKD and OFA's loss on logits: values of their authors' code, and calculations in numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objectives.dkd import dkd_loss
from kd_local.distill.objectives.gdkd import gdkd_loss
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.objectives.nkd import nkd_loss
from kd_local.distill.objectives.ofa import ofa_loss
from kd_local.distill.objectives.rld import rld_loss
from kd_local.distill.objectives.ttm import ttm_loss

ROWS, COLUMNS = np.meshgrid(np.arange(4.0), np.arange(10.0), indexing="ij")
STUDENT = 3 * np.sin(1.7 * ROWS + 0.9 * COLUMNS)
TARGET = 4 * np.cos(0.6 * ROWS + 1.3 * COLUMNS) + 0.2 * np.sin(ROWS * COLUMNS)
LABELS = np.array([3, 0, 7, 5])


def labelled(loss, **numbers):
    """The loss with the labels above, unless it is given others."""
    return lambda student, target, labels=LABELS, **more: loss(
        student, target, jnp.asarray(labels), **{**numbers, **more}
    )


# The authors' code in float64: the loss, the norm of its gradient, and the gradient's first number.
PUBLISHED = {
    "ttm": (partial(ttm_loss, gamma=0.2), 1.693286579, 0.231751459, -0.042491514),
    "wttm": (partial(ttm_loss, gamma=0.2, weighted=True), 7.748434523, 1.060467537, -0.192993482),
    "rld": (labelled(rld_loss), 18.799555659, 4.378756969, 0.001518800),
    "rld standardised": (
        labelled(rld_loss, temperature=2.0, alpha_temperature=2.0, standardised=True),
        3.296972867,
        0.750935062,
        0.010749952,
    ),
    "gdkd": (gdkd_loss, 29.549144147, 4.231614751, -0.152578051),
    "nkd": (labelled(nkd_loss), 6.061540407, 0.532776112, -0.153174503),
    "nkd of SDD": (labelled(nkd_loss, keep_label=True), 5.887277685, 0.478645665, -0.153452930),
    "ofa": (labelled(ofa_loss), 3.882324866, 0.315923804, -0.102303059),
    "ofa 1.5": (labelled(ofa_loss, eps=1.5), 2.215310900, 0.201568007, -0.067003559),
}
LOSSES = {name.split()[0]: loss for name, (loss, *_) in PUBLISHED.items()}
LOSSES["rld"], LOSSES["nkd"], LOSSES["ofa"] = (PUBLISHED[name][0] for name in ("rld", "nkd", "ofa"))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name):
    loss, value, norm, first = PUBLISHED[name]
    found, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(STUDENT), jnp.asarray(TARGET))
    np.testing.assert_allclose(found, value, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=2e-9)
    np.testing.assert_allclose(gradient[0, 0], first, atol=6e-10)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("gamma", [0.2, 1.0])
def test_ttm_by_its_definition(gamma):
    powers, q = softmax(TARGET) ** gamma, softmax(STUDENT)
    z = powers.sum(axis=-1)
    each = np.array([kl(power / total, student) for power, total, student in zip(powers, z, q, strict=True)])
    found = [ttm_loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), gamma=gamma, weighted=w) for w in (False, True)]
    np.testing.assert_allclose(found, (each.mean(), (z * each).mean()), rtol=1e-12)


def test_ttm_with_gamma_1_is_kd_at_temperature_1():
    expected = kd_loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), temperature=1.0)
    for weighted in (False, True):  # Z is 1
        found = ttm_loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), gamma=1.0, weighted=weighted)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0)])
def test_rld_by_its_definition(alpha, beta):
    each = []
    for student, target, label in zip(STUDENT, TARGET, LABELS, strict=True):
        p, q = softmax(target / 2).max(), softmax(student / 2)[label]
        confidence = 4 * kl(np.array([p, 1 - p]), np.array([q, 1 - q]))
        below = target < target[label]
        masked = 9 * kl(softmax(target[below] / 3), softmax(student[below] / 3)) if below.any() else 0
        each.append(alpha * confidence + beta * masked)
    numbers = {"alpha": alpha, "beta": beta, "temperature": 3.0, "alpha_temperature": 2.0}
    found = rld_loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), jnp.asarray(LABELS), **numbers)
    np.testing.assert_allclose(found, np.mean(each), rtol=1e-12)


@pytest.mark.long
def test_rld_without_a_class_below_the_label_has_no_mcd():
    labels = jnp.asarray(TARGET.argmin(axis=-1))
    loss = partial(rld_loss, target=jnp.asarray(TARGET), labels=labels, alpha=0.0)
    with jax.debug_nans(True):  # no step of the backward pass may be NaN, also if a later one discards it
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(STUDENT))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(STUDENT))
    # Equal logits are not below each other.
    assert rld_loss(jnp.asarray(STUDENT), jnp.zeros((4, 10)), jnp.asarray(LABELS), alpha=0.0) == 0


def test_nkd_by_its_definition():
    each = {False: [], True: []}
    for student, target, label in zip(STUDENT, TARGET, LABELS, strict=True):
        of_label = -softmax(target)[label] * np.log(softmax(student)[label])
        for keep_label in each:
            p, q = (softmax((x if keep_label else np.delete(x, label)) / 2) for x in (target, student))
            each[keep_label].append(of_label - 1.2 * 4 * (p * np.log(q)).sum())
    for keep_label, expected in each.items():
        loss = partial(nkd_loss, gamma=1.2, temperature=2.0, keep_label=keep_label)
        found = loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), jnp.asarray(LABELS))
        np.testing.assert_allclose(found, np.mean(expected), rtol=1e-12)


def test_gdkd_by_its_definition():
    parts = []
    for student, target in zip(STUDENT, TARGET, strict=True):
        top = np.isin(np.arange(10), np.argsort(target)[-3:])
        p, q = softmax(target / 2), softmax(student / 2)
        masses = kl(np.array([p[top].sum(), p[~top].sum()]), np.array([q[top].sum(), q[~top].sum()]))
        within = [kl(p[group] / p[group].sum(), q[group] / q[group].sum()) for group in (top, ~top)]
        parts.append([masses, *within])
    expected = 4 * np.mean(parts, axis=0) @ [0.5, 2.0, 3.0]
    numbers = {"k": 3, "mass_weight": 0.5, "top_weight": 2.0, "rest_weight": 3.0, "temperature": 2.0}
    np.testing.assert_allclose(gdkd_loss(jnp.asarray(STUDENT), jnp.asarray(TARGET), **numbers), expected, rtol=1e-12)


def test_gdkd_with_k_1_is_dkd_of_the_likeliest_class():
    student, target = jnp.asarray(STUDENT), jnp.asarray(TARGET)
    expected = dkd_loss(student, target, target.argmax(axis=-1), alpha=1.0, beta=8.0)
    np.testing.assert_allclose(gdkd_loss(student, target, k=1, top_weight=5.0), expected, rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", LOSSES)
def test_certain_predictions_have_finite_gradients(name, dtype):
    certain = (200 * jax.nn.one_hot(jnp.array([3, 1, 7, 5]), 10)).astype(dtype)
    for student, target in ((certain, -certain), (-certain, certain), (certain, certain), (0 * certain, certain)):
        value, gradients = jax.value_and_grad(LOSSES[name], argnums=(0, 1))(student, target)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert all(np.isfinite(gradient.astype(jnp.float32)).all() for gradient in gradients)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("ttm", {"gamma": 0.0}, r"gamma is 0.0: use a number in \(0, 100\], such as 0.2"),
        ("rld", {"alpha": -1.0}, "alpha is -1.0"),
        ("rld", {"alpha_temperature": 0.0}, "alpha_temperature is 0.0: use a number"),
        ("rld", {"temperature": 0.0}, "temperature is 0.0"),
        ("rld", {"labels": np.array([3, 0, 10, 5])}, "labels are from 0 to 10: use 0 to 9"),
        ("nkd", {"gamma": -1.0}, "gamma is -1.0"),
        ("nkd", {"labels": np.array([3, 0, 10, 5])}, "labels are from 0 to 10: use 0 to 9"),
        ("gdkd", {"k": 10}, "k is 10: use fewer than the 10 classes, so that some are not among the k"),
        ("gdkd", {"k": 0}, "k is 0: use a whole number from 1"),
        ("gdkd", {"rest_weight": -1.0}, "rest_weight is -1.0"),
        ("rld", {"student": np.zeros((4, 1)), "target": np.zeros((4, 1))}, "1 class: rld compares a label's class"),
        ("nkd", {"student": np.zeros((4, 1)), "target": np.zeros((4, 1))}, "1 class: nkd compares a label's class"),
    ],
)
def test_arguments_out_of_range_are_refused(name, arguments, text):
    with pytest.raises(ValueError, match=text):
        LOSSES[name](**{"student": STUDENT, "target": TARGET, **arguments})
