"""A teacher that was trained with another normalisation gets the images in its own normalisation."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.data import Augmentation, normalise
from kd_local.distill import OBJECTIVES, Distillation, Renormalisation, Teacher
from kd_local.models import resnet
from kd_local.parallel import compile_step
from kd_local.training import TeacherCache
from tests.support import tiny
from tests.support.taught import locally_taught

OWN = Augmentation(mean=(100.0, 90.0, 20.0), std=(50.0, 60.0, 255.0))
STUDENTS = Augmentation(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))
BETWEEN = Renormalisation.between((STUDENTS.mean, STUDENTS.std), (OWN.mean, OWN.std))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = jnp.arange(6, dtype=jnp.int32) % 5
KEY = jax.random.key(1)


def logits(teacher: Teacher, images: jax.Array) -> jax.Array:
    return jax.jit(partial(teacher.network.apply, train=False))(teacher.variables, images)[0]


def test_images_are_mapped_from_one_normalisation_to_the_other():
    assert BETWEEN is not None
    np.testing.assert_allclose(BETWEEN(normalise(STUDENTS, PIXELS)), normalise(OWN, PIXELS), rtol=1e-5, atol=1e-5)
    assert Renormalisation.between((OWN.mean, OWN.std), (OWN.mean, OWN.std)) is None
    with pytest.raises(ValueError, match="the teacher.s images have 1 channels, the student.s 3"):
        Renormalisation.between((OWN.mean, OWN.std), ((0.5,), (0.5,)))


@pytest.mark.long
def test_a_student_learns_from_the_logits_of_the_teachers_own_images():
    network = tiny.network(5, width=6)
    plain = Teacher(network, tiny.variables(network, 3))
    teacher = replace(plain, renormalisation=BETWEEN)
    images, expected = normalise(STUDENTS, PIXELS), logits(plain, normalise(OWN, PIXELS))
    found = {}
    for cached in (False, True):
        method = Distillation(tiny.network(5), (teacher,), OBJECTIVES["kd"](), optax.sgd(0.1), cached=cached)
        state = method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
        given = method.teacher_logits(state, images)["teacher0"]
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
        extra = {"teacher0_logits": expected} if cached else {}
        _, metrics = compile_step(method, images, LABELS, extra)(state, images, LABELS, KEY, extra)
        found[cached] = metrics["student"]["loss"]
    assert float(found[False]) == pytest.approx(float(found[True]), rel=1e-4)


def test_a_cache_holds_the_logits_of_the_teachers_own_images(tmp_path):
    network = tiny.network(width=6)
    data = tiny.data(16, 4, augmentation=Augmentation(mean=(77.0,), std=(60.0,)))
    plain = Teacher(network, tiny.variables(network, 0, (8, 8, 1)))
    between = Renormalisation.between(((77.0,), (60.0,)), ((20.0,), (100.0,)))
    caches = [
        TeacherCache(network, plain.variables, data, tmp_path, batch_size=8, steps=2, renormalisation=by)
        for by in (None, between)
    ]
    assert caches[0].key != caches[1].key
    rows = caches[1].fill()(0, np.arange(8))
    own = normalise(Augmentation(mean=(20.0,), std=(100.0,)), data.train.images[:8])
    np.testing.assert_allclose(rows, logits(plain, own), rtol=1e-4, atol=1e-4)


def test_local_distillation_learns_from_the_logits_of_the_teachers_own_images():
    network = resnet(8, classes=5, widths=(4, 4, 6, 8))
    plain = Teacher(network, tiny.variables(network, 3))
    method = locally_taught(network, replace(plain, renormalisation=BETWEEN), (8, 8, 3), optax.sgd(0.1))
    images, expected = normalise(STUDENTS, PIXELS), logits(plain, normalise(OWN, PIXELS))
    program = method.programs()[0]
    _, (given,), _ = jax.jit(program.function)(plain.variables, (), (images, LABELS), KEY, jnp.zeros(0))
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
    compared = method.teacher_logits({"teacher": plain.variables}, images)["teacher"]
    np.testing.assert_allclose(compared, expected, rtol=1e-4, atol=1e-4)
