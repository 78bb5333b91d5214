"""SDD: regions of the last map, their weights, and distances of their logits."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import Distillation, Teacher
from kd_local.distill.objectives.dkd import DKD
from kd_local.distill.objectives.kd import KD, kd_loss
from kd_local.distill.objectives.nkd import NKD
from kd_local.distill.objectives.registry import OBJECTIVES
from kd_local.distill.objectives.sdd import SDDKD, SDKD
from kd_local.distill.outputs import output_shapes, outputs
from kd_local.distill.regions import by_region, region_logits, region_means, region_weights
from kd_local.distill.sample_weights import entropy_weights
from kd_local.models import resnet
from kd_local.models.class_token import TokenClassifier
from kd_local.models.ends import Classifier, ConvClassifier, Stem
from kd_local.models.vgg import ThreeLinearClassifier
from kd_local.models.vision_transformer import LayerNormClassifier
from kd_local.models.wide_resnet import NormClassifier
from kd_local.networks import Network

LABELS = np.array([3, 0, 7, 5])
SAMPLES, REGIONS, CLASSES = np.meshgrid(np.arange(4.0), np.arange(5.0), np.arange(10.0), indexing="ij")
STUDENT = 3 * np.sin(1.7 * SAMPLES + 0.9 * CLASSES + 0.4 * REGIONS)
TARGET = 4 * np.cos(0.6 * SAMPLES + 1.3 * CLASSES + 0.7 * REGIONS)
IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("objective", "value", "norm", "first"),
    [
        (KD(), 6.686678646, 0.278026255, -0.025970531),
        (DKD(), 51.185220152, 2.260329995, -0.206873110),
        (NKD(keep_label=True), 7.769411481, 0.305467620, -0.030690586),
    ],
    ids=["SD-KD", "SD-DKD", "SD-NKD"],
)
def test_published_values(objective, value, norm, first):
    loss = lambda student: by_region(objective.distance, student, jnp.asarray(TARGET), jnp.asarray(LABELS))
    found, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(STUDENT))
    np.testing.assert_allclose(found, value, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=2e-9)
    np.testing.assert_allclose(gradient[0, 0, 0], first, atol=6e-10)


def test_regions_are_the_whole_map_and_parts_row_by_row():
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3))
    found = region_means(jnp.asarray(x), (1, 2, 4))
    assert found.shape == (2, 21, 3)
    np.testing.assert_allclose(found[:, 0], x.mean(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found[:, 2], x[:, :4, 4:].mean(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found[:, 5 + 4 * 2 + 1], x[:, 4:6, 2:4].mean(axis=(1, 2)), rtol=1e-12)


def test_parts_of_other_maps_overlap_or_repeat():
    rows = jnp.arange(7.0)[None, :, None, None] * jnp.ones((1, 7, 7, 1))
    # The windows of 4 rows of 7: 0-1, 1-3, 3-5, 5-6.
    expected = np.array([0.5, 2.0, 4.0, 5.5])
    np.testing.assert_allclose(region_means(rows, (1, 2, 4))[0, 5::4, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(region_means(rows)[0, :, 0], [3.0, 1.25, 1.25, 4.75, 4.75], rtol=1e-12)
    small = region_means(rows[:, :2, :2], (1, 2, 4))[0, :, 0]
    np.testing.assert_allclose(small, [0.5, 0, 0, 1, 1, *[0] * 8, *[1] * 8], rtol=1e-12)


def test_weights_by_hand():
    labels = jnp.array([0, 0, 1])
    # Predictions of the whole map and two regions: right, right, wrong; wrong, right, wrong; right, right, right.
    logits = jnp.asarray(np.eye(3)[np.array([[0, 0, 2], [1, 0, 2], [1, 1, 1]])])
    np.testing.assert_array_equal(region_weights(logits, labels), [[1, 1, 2], [1, 2, 1], [1, 1, 1]])


@pytest.mark.long
def test_a_loss_by_its_definition():
    weights = np.asarray(region_weights(jnp.asarray(TARGET), jnp.asarray(LABELS)))
    assert 0 < (weights == 2).mean() < 1
    student, target = jnp.asarray(STUDENT), jnp.asarray(TARGET)
    each = [[float(kd_loss(student[i, None, r], target[i, None, r])) for r in range(5)] for i in range(4)]
    found = by_region(KD().distance, student, target, jnp.asarray(LABELS))
    np.testing.assert_allclose(found, (weights * each).mean(), rtol=1e-12)


@pytest.mark.exhaustive
def test_weights_by_entropy_are_those_of_each_region(training_batches):
    batch = training_batches(dtype="float64")
    found = SDKD(entropy_weight="100").loss({}, batch).metrics["distillation"]
    student = region_logits(batch.pair.student, {"params": batch.student_params}, batch.student, (1, 2))
    target = region_logits(batch.pair.teacher, batch.teacher_variables, batch.teacher, (1, 2))
    weights = region_weights(target, batch.labels)
    each = [weights[:, r] * entropy_weights(student[:, r], target[:, r], "100") for r in range(5)]
    losses = [KD().distance(student[:, r], target[:, r], batch.labels, each[r]) for r in range(5)]
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-12)


@pytest.mark.parametrize("head", [Classifier, NormClassifier, LayerNormClassifier, partial(ConvClassifier, features=6)])
def test_the_logits_of_the_whole_map_are_those_of_the_network(head):
    network = Network.of({"stem": Stem(4), "head": head(5)})
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)))
    like = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    variables = jax.tree.map(lambda x: x.astype(np.float64) + 0.1, network.init(jax.random.key(0), like))
    found, _ = outputs(network, variables, images, train=False)
    logits = region_logits(network, variables, found, (1,))
    np.testing.assert_allclose(logits[:, 0], found.logits, rtol=1e-9)


@pytest.mark.exhaustive
def test_the_student_learns_from_regions():
    """Its last layer gets the gradients of its regions, and the teacher's layer gets none."""
    network, teacher = resnet(8, classes=4, widths=(4, 4, 6, 8)), resnet(8, classes=4, widths=(4, 4, 6, 10))
    variables = teacher.init(jax.random.key(1), IMAGES)
    method = Distillation(network, (Teacher(teacher, variables),), SDKD(ce_weight=0.0), optax.sgd(0.1))
    state = method.init(jax.random.key(0), IMAGES)
    (program,) = method.programs()
    images = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3)), jnp.float32)
    tensors = (images, jnp.arange(4, dtype=jnp.int32))
    part, _, metrics = jax.jit(program.function)(
        state["student"], (state["teacher0"],), tensors, jax.random.key(2), jnp.zeros(0, jnp.float32)
    )
    assert metrics["distillation"] > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state["student"]["params"], part["params"])
    assert all(jax.tree.leaves(moved["student"]))


@pytest.mark.parametrize("scales", [(), (2,), (1, 3), (1, 2, 8), (1, 1), (4, 1)])
def test_other_scales_are_refused(scales):
    with pytest.raises(ValueError, match="scales is"):
        SDKD(scales=scales)
    with pytest.raises(ValueError, match="scales is"):
        region_means(jnp.zeros((1, 8, 8, 2)), scales)


def initialise(objective, batch):
    return objective.init(jax.random.key(0), batch)


def test_networks_without_regions_are_refused(training_batches):
    batch = training_batches()
    without = replace(batch.teacher, before_pooling=None)
    with pytest.raises(ValueError, match="but the head of the teacher does not end in a mean over a map and a linear"):
        initialise(SDDKD(), replace(batch, teacher=without))
    single = replace(batch.student, before_pooling=batch.student.before_pooling[:, :1, :1])
    with pytest.raises(ValueError, match="that of the student has one position: use larger images, or an objective"):
        initialise(SDDKD(), replace(batch, student=single))


@pytest.mark.parametrize(("head", "shape"), [(ThreeLinearClassifier, (1, 32, 32, 3)), (TokenClassifier, (1, 1, 5, 3))])
def test_heads_without_a_mean_over_a_map_have_none(head, shape):
    network = Network.of({"stem": Stem(4), "head": head(5)})
    assert output_shapes(network, jax.ShapeDtypeStruct(shape, jnp.float32)).before_pooling is None


def test_a_cache_of_logits_is_refused():
    network = resnet(8, classes=4)
    teacher = Teacher(network, {})
    with pytest.raises(ValueError, match="SDKD reads the teacher's features, and a cache has its logits only"):
        Distillation(network, (teacher,), OBJECTIVES["sd_kd"](), optax.sgd(0.1), cached=True)
