"""The combination of objectives."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill.distillation import Distillation
from kd_local.distill.objective import Objective, ObjectiveLoss
from kd_local.distill.objectives.block_kd import BlockKD
from kd_local.distill.objectives.combined import Combined
from kd_local.distill.objectives.crd import CRD
from kd_local.distill.objectives.crld import CRLD
from kd_local.distill.objectives.dkd import DKD, dkd_loss
from kd_local.distill.objectives.fitnet import FitNet
from kd_local.distill.objectives.kd import KD
from kd_local.distill.objectives.ofa import OFA
from kd_local.distill.objectives.registry import OBJECTIVES
from kd_local.distill.objectives.rkd import RKD
from kd_local.distill.objectives.simkd import SimKD
from kd_local.distill.objectives.sp import SP, similarity_loss
from kd_local.distill.teacher import Teacher
from kd_local.local.losses import softmax
from kd_local.local.task_loss import TaskLoss
from kd_local.networks import of_block
from kd_local.parallel import compile_step
from tests.support import tiny

LIKE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)


def teacher(classes: int = 5, **options: bool) -> Teacher:
    network = tiny.network(classes, width=6, **options)
    return Teacher(network, tiny.variables(network, 3))


def initialise(objective, batch, examples):
    student, of_teacher = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (batch.student, batch.teacher))
    return objective.init(jax.random.key(0), replace(batch, student=student, teacher=of_teacher), examples=examples)


def test_the_cross_entropy_of_the_labels_counts_once(training_batches):
    batch = training_batches(epoch=5.0)
    objective = Combined(((DKD(), 2.0), (SP(weight=40.0), 0.5)), ce_weight=0.7)
    found = objective.loss({}, batch)
    cross_entropy = softmax(batch.student.logits, batch.labels)["loss"]
    dkd = dkd_loss(batch.student.logits, batch.teacher.logits, batch.labels)
    sp = similarity_loss(batch.student.features[-1], batch.teacher.features[-1])
    np.testing.assert_allclose(found.task, 0.7 * cross_entropy, rtol=1e-6)
    np.testing.assert_allclose(found.distillation, 2.0 * 5 / 20 * dkd + 0.5 * 40 * sp, rtol=1e-5)
    assert found.metrics.keys() == {"cross_entropy", "dkd_distillation", "sp_distillation"}
    np.testing.assert_allclose(found.metrics["dkd_distillation"], dkd, rtol=1e-6)


def test_the_cross_entropies_of_stepping_stones_keep_their_weight(training_batches, examples):
    batch, block_kd = training_batches(), BlockKD(alpha=0.3, beta=0.6, gamma=0.8, stones=(3,))
    variables = initialise(block_kd, batch, examples)
    alone = block_kd.loss(variables, batch).metrics
    together = Combined(((KD(weight=0.5), 1.0), (block_kd, 2.0)), ce_weight=0.7)
    nested = {name: {"kd": {}, "block_kd": own} for name, own in variables.items()}
    found = together.loss(nested, batch)
    cross_entropy = softmax(batch.student.logits, batch.labels)["loss"]
    of_stone = alone["task"] - cross_entropy
    np.testing.assert_allclose(found.task, 0.7 * cross_entropy + 2.0 * 0.3 * of_stone, rtol=1e-5)
    of_kd = found.metrics["kd_distillation"]
    expected = 0.5 * of_kd + 2.0 * (0.6 * alone["distillation"] + 0.8 * alone["cross"])
    np.testing.assert_allclose(found.distillation, expected, rtol=1e-5)
    assert found.batch_stats.keys() == {"kd", "block_kd"}
    assert together.exits(nested, batch).keys() == {"block_kd-stone3"}


@dataclass(frozen=True)
class Both(Objective):
    """An objective, and the combination of it alone with its own weight of the labels."""

    one: Objective

    reads = property(lambda self: self.one.reads)
    needs_indices = property(lambda self: self.one.needs_indices)
    needs_strong_view = property(lambda self: self.one.needs_strong_view)
    needs_epoch = property(lambda self: self.one.needs_epoch)

    def init(self, rng, batch, *, examples=None):
        return self.one.init(rng, batch, examples=examples)

    def loss(self, variables, batch):
        alone = self.one.loss(variables, replace(batch, rng=jax.random.split(batch.rng, 1)[0]))
        combined = Combined(((self.one, 1.0),), ce_weight=self.one.task_weight)
        (name,) = combined.names
        nested = {collection: {name: own} for collection, own in variables.items()}
        together = combined.loss(nested, batch)
        metrics = {
            "task": alone.task, "distillation": alone.distillation,
            "combined_task": together.task, "combined_distillation": together.distillation,
        }  # fmt: skip
        return ObjectiveLoss(alone.task, alone.distillation, metrics, alone.batch_stats)


COMBINABLE = [name for name, kind in OBJECTIVES.items() if kind().deploys_student]


@pytest.mark.usually("kd", "block_kd")
@pytest.mark.parametrize("name", COMBINABLE)
def test_one_objective_combined_with_its_own_weight_of_the_labels_is_the_objective(name):
    """A loss of labels that an objective does not declare, `has_other_task_terms`, would be missing."""
    one = OBJECTIVES[name](**({"negatives": 4} if name == "crd" else {"stage": 1} if name == "fitnet" else {}))
    stages = {"whole_network": name == "fcfd"}  # whose paths need three stages
    student, teachers = tiny.network(10, **stages), (teacher(10, **stages),)
    method = Distillation(student, teachers, Both(one), optax.sgd(0.1), examples=6)
    state = method.init(jax.random.key(0), LIKE)
    images, labels = tiny.batch(classes=10)
    tensors = {
        "images": images, "labels": labels, "images_strong": images[:, ::-1] * 1.5,
        "indices": jnp.arange(6, dtype=jnp.int32), "epoch": jnp.float32(3),
    }  # fmt: skip
    (program,) = method.programs()

    @jax.jit
    def metrics(state):
        frozen = tuple(state[path] for path in program.frozen)
        read = tuple(tensors[name] for name in program.reads)
        return program.function(state["student"], frozen, read, jax.random.key(1), jnp.zeros(0))[2]

    found = metrics(state)
    np.testing.assert_allclose(found["combined_task"], found["task"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["combined_distillation"], found["distillation"], rtol=1e-6)


def test_variables_have_the_names_of_the_objectives(training_batches, examples):
    batch, crd, fitnet = training_batches(), CRD(negatives=4), FitNet()
    objective = Combined(((KD(), 1.0), (crd, 1.0), (fitnet, 1.0)))
    variables = initialise(objective, batch, examples)
    assert variables["params"].keys() == variables["batch_stats"].keys() == {"kd", "crd", "fitnet"}
    assert variables["batch_stats"]["crd"]["memory"]["student"].shape == (examples, 128)
    keys = jax.random.split(batch.rng, 3)
    after = jax.jit(lambda: objective.loss(variables, batch).batch_stats)()
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, variables["batch_stats"])
    of_crd = jax.jit(lambda key: crd.loss(of_block(variables, "crd"), replace(batch, rng=key)))
    own, of_another_key = of_crd(keys[1]), of_crd(keys[2])
    jax.tree.map(np.testing.assert_allclose, after["crd"], own.batch_stats)
    assert own.distillation != of_another_key.distillation


def test_the_needs_are_those_of_all_objectives():
    logits = Combined(((KD(), 1.0), (DKD(), 1.0)))
    assert (logits.reads, logits.needs_indices, logits.needs_epoch, logits.needs_strong_view) == (
        "logits", False, True, False,
    )  # fmt: skip
    assert not logits.reads_student_features
    sequences = Combined(((KD(), 1.0), (OFA(), 1.0)))
    assert (sequences.reads, sequences.reads_student_features, sequences.takes_tokens) == ("logits", True, True)
    assert not Combined(((OFA(), 1.0), (SP(), 1.0))).takes_tokens
    features = Combined(((KD(), 1.0), (CRD(), 1.0), (CRLD(), 1.0)))
    assert (features.reads, features.needs_indices, features.needs_epoch, features.needs_strong_view) == (
        "features", True, False, True,
    )  # fmt: skip
    assert features.label == "Combined(KD, CRD, CRLD)" and hash(features) == hash(replace(features))


@pytest.mark.long
def test_a_step_trains_the_student_and_every_connector():
    objective = Combined(((DKD(warmup_epochs=0), 1.0), (OBJECTIVES["fitnet"](stage=1), 0.01), (BlockKD(), 1.0)))
    method = Distillation(tiny.network(5), (teacher(),), objective, optax.sgd(0.1))
    state = method.init(jax.random.key(0), LIKE)
    before = jax.tree.map(np.array, state["student"]["params"])
    images, labels = tiny.batch()
    after, _ = compile_step(method, images, labels)(state, images, labels, jax.random.key(1))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after["student"]["params"])
    assert all(jax.tree.leaves(moved))
    assert moved["teacher0"].keys() == {"dkd", "fitnet", "block_kd"}
    assert method.exits(after, images).keys() == {"block_kd-stone1"}


def test_cached_logits_serve_a_combination_that_reads_only_logits():
    build = partial(Distillation, tiny.network(5), (teacher(),), optimizer=optax.sgd(0.1), cached=True)
    (program,) = build(objective=Combined(((KD(), 1.0), (DKD(), 1.0)))).programs()
    assert program.reads == ("images", "labels", "epoch", "teacher0_logits")
    with pytest.raises(ValueError, match=r"Combined\(KD, RKD\) reads the teacher's features, and a cache has"):
        build(objective=Combined(((KD(), 1.0), (RKD(), 1.0))))


def test_options_of_the_labels_need_a_loss_of_labels():
    smoothed = partial(
        Distillation, tiny.network(5), (teacher(),), optimizer=optax.sgd(0.1), task_loss=TaskLoss(label_smoothing=0.1)
    )
    smoothed(objective=Combined(((BlockKD(), 1.0),), ce_weight=0.0))
    with pytest.raises(ValueError, match="label_smoothing is 0.1, but the cross entropy of the labels has weight 0"):
        smoothed(objective=Combined(((KD(), 1.0),), ce_weight=0.0))
    with pytest.raises(ValueError, match="label_smoothing is 0.1, but the cross entropy of the labels has weight 0"):
        smoothed(objective=Combined(((BlockKD(alpha=0.0), 1.0),), ce_weight=0.0))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objectives": ()}, r"objectives is \(\): use pairs of an objective and its weight"),
        ({"objectives": KD()}, "objectives is .*: use pairs"),
        ({"objectives": (KD(),)}, r"KD\(.*\) in objectives: use pairs"),
        ({"objectives": (("kd", 1.0),)}, "an objective is 'kd'.*: use pairs"),
        ({"objectives": ((KD(), 0.0),)}, "the weight of KD is 0.0: .*leave an objective of weight 0 out"),
        ({"objectives": ((KD(), -1.0),)}, "the weight of KD is -1.0"),
        ({"objectives": ((KD(), 1.0), (KD(temperature=2.0), 1.0))}, "objectives has kd twice: give each"),
        ({"objectives": ((SimKD(), 1.0),)}, "SimKD deploys other blocks than the student's.*: use it alone"),
        ({"objectives": ((Combined(((KD(), 1.0),)), 1.0),)}, "Combined within Combined: give the objectives of both"),
        ({"objectives": ((KD(ce_weight=1.0), 1.0),)}, "ce_weight of KD is 1.0, but a combination has one"),
        ({"objectives": ((KD(weight=0.0), 1.0),)}, "weight of KD is 0, so it adds nothing to a combination"),
        ({"objectives": ((DKD(alpha=0.0, beta=0.0), 1.0),)}, "alpha and beta of DKD are 0, so it adds nothing"),
        ({"objectives": ((KD(), 1.0),), "ce_weight": -1.0}, "ce_weight is -1.0: use a number in"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Combined(**arguments)
