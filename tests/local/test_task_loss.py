"""The cross entropy of the labels with label smoothing and class weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kd_local.distill import KD, OBJECTIVES, Distillation, StoneLoss, Teacher, TeacherRule
from kd_local.local import TaskLoss, balanced_class_weights, cut
from kd_local.local.losses import softmax
from kd_local.models import create
from kd_local.parallel import device_mesh

LOGITS = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 3, 3, 0, 1], np.int32)
WEIGHTS = (0.5, 1.0, 2.0, 4.0)
OPTIONS = [
    {"label_smoothing": 0.1},
    {"class_weights": WEIGHTS},
    {"label_smoothing": 0.3, "class_weights": WEIGHTS},
]


def _by_hand(label_smoothing: float = 0.0, class_weights: tuple[float, ...] = (1.0,) * 4) -> float:
    total = weight = 0.0
    for logits, label in zip(LOGITS.astype(float), LABELS, strict=True):
        log_p = logits - np.log(np.exp(logits).sum())
        weight += class_weights[label]
        total -= (1 - label_smoothing) * class_weights[label] * log_p[label]
        total -= label_smoothing / 4 * sum(w * one for w, one in zip(class_weights, log_p, strict=True))
    return total / weight


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_is_that_of_the_formula(options):
    metrics = TaskLoss(**options)(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    assert metrics["loss"] == pytest.approx(_by_hand(**options), rel=1e-6)
    assert metrics["accuracy"] == softmax(jnp.asarray(LOGITS), jnp.asarray(LABELS))["accuracy"]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_is_that_of_pytorch(options):
    torch = pytest.importorskip("torch")
    weights = options.get("class_weights")
    loss = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(weights), label_smoothing=options.get("label_smoothing", 0.0)
    )
    expected = loss(torch.tensor(LOGITS), torch.tensor(LABELS).long()).item()
    assert TaskLoss(**options)(jnp.asarray(LOGITS), jnp.asarray(LABELS))["loss"] == pytest.approx(expected, rel=1e-6)


def test_the_default_computes_the_plain_cross_entropy():
    plain, default = (str(jax.make_jaxpr(loss)(LOGITS, LABELS)) for loss in (softmax, TaskLoss()))
    assert plain == default


def test_the_loss_of_a_divided_batch_is_that_of_one_device():
    loss = TaskLoss(label_smoothing=0.1, class_weights=WEIGHTS)
    over = NamedSharding(device_mesh(2), PartitionSpec("data"))
    divided = jax.jit(loss)(jax.device_put(LOGITS, over), jax.device_put(LABELS, over))
    assert divided["loss"] == pytest.approx(_by_hand(0.1, WEIGHTS), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0: use a number in .0, 1., such as 0.1; 0 is none"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"label_smoothing": float("nan")}, "label_smoothing is nan"),
        ({"class_weights": (1.0, 0.0)}, "class_weights.1. is 0.0: use a number in"),
        ({"class_weights": (1.0, float("inf"))}, "class_weights.1. is inf"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        TaskLoss(**options)


def test_options_that_no_loss_would_use_are_refused():
    student = create("resnet8", classes=4)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(student.init, jax.random.key(0), images)
    teacher, loss = Teacher(student, variables), TaskLoss(label_smoothing=0.1)
    text = "label_smoothing is 0.1, but the cross entropy of the labels has weight 0: use a larger"
    for objective in (KD(ce_weight=0.0), OBJECTIVES["simkd"]()):
        with pytest.raises(ValueError, match=text):
            Distillation(student, (teacher,), objective, optax.sgd(0.1), task_loss=loss)
    with pytest.raises(ValueError, match=text):
        cut(student, 2, classes=4, auxiliary=TeacherRule(teacher, (8, 8, 3), StoneLoss(alpha=0.0)), task_loss=loss)
    with pytest.raises(ValueError, match="but the local loss contrast of the modules before the last ignores it"):
        cut(student, 2, classes=4, loss="contrast", task_loss=loss)
    with pytest.raises(ValueError, match="class_weights has 2 numbers for 4 classes"):
        cut(student, 2, classes=4, task_loss=TaskLoss(class_weights=(1.0, 2.0)))


def test_balanced_weights_give_each_class_the_same_sum():
    weights = balanced_class_weights(LABELS, 4)
    assert [weights[label] * count for label, count in enumerate(np.bincount(LABELS))] == pytest.approx([2.0] * 4)
    with pytest.raises(ValueError, match="class 4 has no training image"):
        balanced_class_weights(LABELS, 5)
