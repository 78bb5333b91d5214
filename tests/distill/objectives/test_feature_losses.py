"""FitNet, AT, SP, RKD, PKT, NST, VID and OFD against hand calculations and plain numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.connector import Connector
from kd_local.distill.objectives.at import attention_loss
from kd_local.distill.objectives.fitnet import hint_loss
from kd_local.distill.objectives.nst import nst_loss
from kd_local.distill.objectives.ofd import margins, ofd_loss
from kd_local.distill.objectives.pkt import pkt_loss
from kd_local.distill.objectives.registry import OBJECTIVES
from kd_local.distill.objectives.rkd import rkd_loss
from kd_local.distill.objectives.sp import similarity_loss
from kd_local.distill.objectives.vid import Regressor, vid_loss
from kd_local.networks import of_block

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.standard_normal((3, 4, 4, 2)), RNG.standard_normal((3, 2, 2, 5))
VECTORS, OTHERS = RNG.standard_normal((5, 3)), RNG.standard_normal((5, 4))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def pooled(x: np.ndarray) -> np.ndarray:
    """4x4 to 2x2."""
    return np.array(
        [
            [[image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)) for j in range(2)] for i in range(2)]
            for image in x
        ]
    )


def test_hint_by_hand():
    student = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(hint_loss(student, jnp.zeros_like(student)), 30 / 4)


@pytest.mark.long
def test_fitnet_compares_the_regressed_features(training_batches, examples):
    batch, objective = training_batches(dtype="float64"), OBJECTIVES["fitnet"](stage=3)
    variables = objective.init(jax.random.key(0), batch, examples=examples)
    found = objective.loss(variables, batch)
    metrics, batch_stats = found.metrics, found.batch_stats
    own = of_block(variables, "regressor")
    hint, updated = Connector((2, 2, 10)).apply(own, batch.student.features[3], train=True, mutable=["batch_stats"])
    expected = np.square(hint - batch.teacher.features[3]).mean()
    np.testing.assert_allclose(metrics["distillation"], expected, rtol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, batch_stats["regressor"], updated["batch_stats"])
    assert np.abs(jax.tree.leaves(batch_stats)[0] - jax.tree.leaves(variables["batch_stats"])[0]).max() > 0


@pytest.mark.parametrize("power", [1, 2, 3])
def test_attention_by_its_definition(power):
    each = []
    for student, teacher in zip(pooled(STUDENT), TEACHER, strict=True):
        maps = [unit((np.abs(x) ** power).mean(axis=-1).ravel()) for x in (student, teacher)]
        each.append(np.square(maps[0] - maps[1]).mean())
    for a, b in ((STUDENT, TEACHER), (TEACHER, STUDENT)):  # the larger is pooled, whichever it is
        found = attention_loss(jnp.asarray(a), jnp.asarray(b), power=power)
        np.testing.assert_allclose(found, np.mean(each), rtol=1e-12)


def test_similarity_by_its_definition():
    grams = []
    for features in (STUDENT, TEACHER):
        rows = features.reshape(3, -1)
        grams.append(np.array([unit(row) for row in rows @ rows.T]))
    found = similarity_loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    np.testing.assert_allclose(found, np.square(grams[0] - grams[1]).sum() / 9, rtol=1e-12)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


@pytest.mark.long
@pytest.mark.parametrize(("distance", "angle"), [(1.0, 0.0), (0.0, 1.0), (25.0, 50.0)])
def test_rkd_by_its_definition(distance, angle):
    n = len(VECTORS)
    distances, cosines = [], []
    for x in (10 * VECTORS, OTHERS):
        each = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        distances.append(each / (each.sum() / (n * (n - 1))))
        cosines.append(
            [
                0.0 if j in (i, k) else unit(x[i] - x[j]) @ unit(x[k] - x[j])
                for i, j, k in itertools.product(range(n), repeat=3)
            ]
        )
    of_distances = np.mean([huber(a - b) for a, b in zip(*map(np.ravel, distances), strict=True)])
    of_angles = np.mean([huber(a - b) for a, b in zip(*cosines, strict=True)])
    found = rkd_loss(jnp.asarray(10 * VECTORS), jnp.asarray(OTHERS), distance_weight=distance, angle_weight=angle)
    np.testing.assert_allclose(found, distance * of_distances + angle * of_angles, rtol=1e-10)


def test_pkt_by_its_definition():
    probabilities = []
    for x in (VECTORS, OTHERS):
        similarity = np.array([[(unit(a) @ unit(b) + 1) / 2 for b in x] for a in x])
        probabilities.append(similarity / similarity.sum(axis=1, keepdims=True))
    q, p = probabilities
    np.testing.assert_allclose(
        pkt_loss(jnp.asarray(VECTORS), jnp.asarray(OTHERS)), (p * np.log(p / q)).mean(), rtol=1e-4
    )


@pytest.mark.long
def test_nst_by_its_definition():
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        channels = itertools.product(range(a.shape[-1]), range(b.shape[-1]))
        return np.mean([(unit(a[..., i].ravel()) @ unit(b[..., j].ravel())) ** 2 for i, j in channels])

    each = [kernel(t, t) + kernel(s, s) - 2 * kernel(s, t) for s, t in zip(pooled(STUDENT), TEACHER, strict=True)]
    np.testing.assert_allclose(nst_loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER)), np.mean(each), rtol=1e-12)
    np.testing.assert_allclose(nst_loss(jnp.asarray(STUDENT), jnp.asarray(STUDENT)), 0, atol=1e-14)


def test_vid_is_a_likelihood():
    mean, log_scale = RNG.standard_normal(TEACHER.shape), RNG.standard_normal(5)
    variance = np.log(1 + np.exp(log_scale)) + 1e-5
    density = np.exp(-((TEACHER - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    expected = -np.log(density).mean() - np.log(2 * np.pi) / 2
    found = vid_loss(*map(jnp.asarray, (mean, TEACHER, log_scale)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_vid_starts_at_init_variance():
    student, teacher = jnp.asarray(STUDENT), jnp.zeros(TEACHER.shape)
    variables = Regressor(init_variance=5.0).init(jax.random.key(0), student, teacher, train=True)
    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    params = {**zeros, "log_scale": variables["params"]["log_scale"]}  # of filters of 0 the mean is 0
    found = Regressor().apply({"params": params}, student, teacher, train=True)
    np.testing.assert_allclose(found, np.log(5) / 2, rtol=1e-6)


def test_margins_by_hand():
    x = jnp.array([[-1.0, 2.0, -5.0], [-3.0, 0.0, 1.0]]).reshape(2, 1, 1, 3)
    np.testing.assert_allclose(margins(x), [-2, 0, -5])


def test_ofd_by_hand():
    #            t > 0: always;  m < t <= 0: only above t;  t <= m: only above m
    teacher = [2.0, 2.0, -0.2, -0.2, -3.0, -3.0, -3.0]
    student = [1.0, 4.0, 0.5, -0.4, 1.0, -0.7, -2.0]
    expected = 1 + 4 + 0.49 + 0 + 1.5**2 + 0 + 0
    teacher, student = (jnp.array(x).reshape(1, 7, 1, 1) for x in (teacher, student))
    np.testing.assert_allclose(ofd_loss(student, teacher, jnp.array([-0.5])), expected)
    twice = [jnp.concatenate([x, x]) for x in (student, teacher)]
    np.testing.assert_allclose(ofd_loss(*twice, jnp.array([-0.5])), expected)  # the mean over the batch


@pytest.mark.exhaustive
def test_ofd_halves_earlier_stages(training_batches, examples):
    batch, objective = training_batches(dtype="float64"), OBJECTIVES["ofd"]()
    variables = objective.init(jax.random.key(0), batch, examples=examples)
    metrics = objective.loss(variables, batch).metrics
    expected = 0.0
    for stage in (1, 2, 3):
        target = batch.teacher.preactivations[stage]
        own = of_block(variables, f"stage{stage}")
        connector = Connector(target.shape[1:], relu=False)
        hint, _ = connector.apply(own, batch.student.preactivations[stage], train=True, mutable=["batch_stats"])
        expected += ofd_loss(hint, target, margins(target)) / 2 ** (3 - stage)
    np.testing.assert_allclose(metrics["distillation"], expected, rtol=1e-12)


@pytest.mark.long
@pytest.mark.usually("at")
@pytest.mark.parametrize("name", ["at", "nst"])
def test_losses_of_stages_are_summed(name, training_batches):
    batch = training_batches(dtype="float64")
    loss = {"at": attention_loss, "nst": nst_loss}[name]
    metrics = OBJECTIVES[name]().loss({}, batch).metrics
    expected = sum(loss(batch.student.features[i], batch.teacher.features[i]) for i in (1, 2, 3))
    np.testing.assert_allclose(metrics["distillation"], expected, rtol=1e-12)
