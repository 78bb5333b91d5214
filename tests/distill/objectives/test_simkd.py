"""SimKD: its loss, and the network that is deployed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objective import EvaluationBatch
from kd_local.distill.objectives.simkd import Projector, SimKD
from kd_local.local.losses import softmax
from kd_local.models.layers import average_pool_to
from kd_local.networks import of_block

SIZES = [(2, 2), (4, 2), (2, 4)]


def initialise(objective, batch):
    return objective.init(jax.random.key(0), batch, examples=9)


@pytest.mark.long
@pytest.mark.usually("2-2")
@pytest.mark.parametrize(("student", "teacher"), SIZES)
def test_training_moves_the_projected_features_to_the_teachers(student, teacher, training_batches):
    batch, objective = training_batches(((8, 4), (student, 6)), ((8, 5), (teacher, 10))), SimKD(ce_weight=0.5)
    variables = initialise(objective, batch)
    found = objective.loss(variables, batch)
    total, metrics, batch_stats = found.total, found.metrics, found.batch_stats
    x, target = (average_pool_to(outputs.features[-1], (2, 2)) for outputs in (batch.student, batch.teacher))
    own = of_block(variables, "projector")
    projected, updated = Projector(10).apply(own, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(metrics["distillation"], np.square(projected - target).mean(), rtol=1e-5)
    classified = softmax(batch.remaining_blocks(1, projected), batch.labels)["loss"]
    np.testing.assert_allclose(metrics["cross_entropy"], classified, rtol=1e-5)
    np.testing.assert_allclose(total, metrics["distillation"] + 0.5 * classified, rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, batch_stats, {"projector": updated["batch_stats"]})


@pytest.mark.parametrize(("student", "teacher"), SIZES)
def test_the_teachers_classifier_is_deployed(student, teacher, training_batches):
    batch, objective = training_batches(((8, 4), (student, 6)), ((8, 5), (teacher, 10))), SimKD()
    variables = initialise(objective, batch)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch.teacher)
    batch = EvaluationBatch(batch.pair, batch.student, shapes, batch.remaining_blocks)
    own = of_block(variables, "projector")
    x = average_pool_to(batch.student.features[-1], (2, 2))
    expected = batch.remaining_blocks(1, Projector(10).apply(own, x, train=False))
    np.testing.assert_allclose(objective.logits(variables, batch), expected, rtol=1e-5)


def test_the_default_loss_ignores_the_labels(training_batches):
    batch, objective = training_batches(), SimKD()
    found = objective.loss(initialise(objective, batch), batch)
    total, metrics = found.total, found.metrics
    assert total == metrics["distillation"]


def test_projector_has_three_convolutions():
    params = Projector(10, factor=2).init(jax.random.key(0), jnp.ones((1, 2, 2, 6)), train=False)["params"]
    kernels = [params[name]["conv"]["kernel"].shape for name in ("conv1", "conv2", "conv3")]
    assert kernels == [(1, 1, 6, 5), (3, 3, 5, 5), (1, 1, 5, 10)]
    assert len(params) == 3


def test_students_classifier_and_teachers_first_blocks_are_not_deployed(training_batches):
    batch = training_batches()
    student, teacher = (
        {name: {"w": name} for name in network.names} for network in (batch.pair.student, batch.pair.teacher)
    )
    deployed = SimKD().deployed(batch.pair, student, {"projector": {"w": "own"}}, teacher)
    assert list(deployed["student"]) == ["stem", "stage1/0", "stage2/0", "stage3/0"]
    assert list(deployed["teacher"]) == ["head"]
    assert deployed["projector"] == {"w": "own"}
