"""Every objective through the same checks."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.logit_objective import LogitObjective
from kd_local.distill.objective import Outputs
from kd_local.distill.objectives.distances import LOGIT_OBJECTIVES
from kd_local.distill.objectives.registry import OBJECTIVES
from kd_local.local.losses import softmax

OF_TWO_VIEWS = {
    "crld": ("cross_entropy_strong", "within_view", "cross_view"),
    "mlkd_two_views": ("cross_entropy_strong", "predictions", "classes", "samples"),
}
"""The metrics of objectives that read a strong view."""
LOGITS_ONLY = {*LOGIT_OBJECTIVES, *OF_TWO_VIEWS}
VGG = ((8, 4), (4, 6), (2, 8), (1, 8), (1, 8))
# As published: the mdistiller protocol for CIFAR-100.
DEFAULTS = {
    "kd": {"ce_weight": 0.1, "weight": 0.9, "temperature": 4, "standardise": False},
    "dkd": {"ce_weight": 1, "alpha": 1, "beta": 8, "temperature": 4, "warmup_epochs": 20, "standardise": False},
    "mlkd": {"ce_weight": 0.1, "weight": 0.9, "temperatures": (2, 3, 4, 5, 6), "standardise": False},
    "dist": {"ce_weight": 1, "beta": 1, "gamma": 1, "temperature": 1, "standardise": False},
    "nkd": {
        "ce_weight": 1,
        "weight": 1,
        "gamma": 1.5,
        "temperature": 1,
        "keep_label": False,
        "standardise": False,
    },
    "ttm": {"ce_weight": 1, "weight": 45, "gamma": 0.1, "standardise": False},
    "wttm": {"ce_weight": 1, "weight": 4, "gamma": 0.2, "standardise": False},
    "rld": {
        "ce_weight": 1,
        "alpha": 1,
        "beta": 8,
        "temperature": 4,
        "alpha_temperature": 1,
        "warmup_epochs": 20,
        "standardise": False,
    },
    "gdkd": {
        "ce_weight": 1,
        "k": 5,
        "mass_weight": 1,
        "top_weight": 1,
        "rest_weight": 8,
        "temperature": 4,
        "warmup_epochs": 20,
        "standardise": False,
    },
    "ofa_logits": {"ce_weight": 1, "weight": 1, "eps": 1, "standardise": False},
    "crld": {
        "ce_weight": 1,
        "within_weight": 2,
        "cross_weight": 0.5,
        "temperature": 4,
        "weak_threshold": 0.9,
        "strong_threshold": 0.2,
    },
    "mlkd_two_views": {"ce_weight": 0.1, "weight": 0.9, "temperatures": (4, 3, 5, 2, 6), "standardise": False},
    "sd_kd": {"ce_weight": 0.1, "weight": 0.9, "temperature": 4, "standardise": False, "scales": (1, 2)},
    "sd_dkd": {
        "ce_weight": 1,
        "alpha": 1,
        "beta": 8,
        "temperature": 4,
        "warmup_epochs": 20,
        "standardise": False,
        "scales": (1, 2),
    },
    "sd_nkd": {
        "ce_weight": 1,
        "weight": 1,
        "gamma": 1.5,
        "temperature": 1,
        "keep_label": True,
        "standardise": False,
        "scales": (1, 2),
    },
    "fitnet": {"ce_weight": 1, "weight": 100, "stage": 2},
    "at": {"ce_weight": 1, "weight": 1000, "power": 2},
    "sp": {"ce_weight": 1, "weight": 3000},
    "rkd": {"ce_weight": 1, "distance_weight": 25, "angle_weight": 50},
    "pkt": {"ce_weight": 1, "weight": 30000},
    "nst": {"ce_weight": 1, "weight": 50},
    "vid": {"ce_weight": 1, "weight": 1, "init_variance": 5},
    "crd": {"ce_weight": 1, "weight": 0.8, "dim": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5},
    "ofd": {"ce_weight": 1, "weight": 0.001},
    "reviewkd": {"ce_weight": 1, "weight": 1, "warmup_epochs": 20, "max_middle": 512, "preactivations": False},
    "simkd": {"ce_weight": 0, "weight": 1, "factor": 2},
}
NAMES = tuple(DEFAULTS)


def initialise(objective, batch, examples):
    student, teacher = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (batch.student, batch.teacher))
    shapes = dataclasses.replace(batch, student=student, teacher=teacher)
    return objective.init(jax.random.key(0), shapes, examples=examples)


def step(objective, batch, variables):
    """Loss, metrics, statistics, and gradients by the objective's parameters and the student's outputs."""

    @jax.jit
    def run(params, student):
        def loss(params, student):
            found = objective.loss({**variables, "params": params}, dataclasses.replace(batch, student=student))
            return found.total, (found.metrics, found.batch_stats)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, student)

    (total, (metrics, batch_stats)), gradients = run(variables["params"], batch.student)
    return total, metrics, batch_stats, gradients


def specification(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_published_values_of_primitive_types(name):
    fields = {field.name: field.default for field in dataclasses.fields(OBJECTIVES[name])}
    weights = {"entropy_weight": "none"} if issubclass(OBJECTIVES[name], LogitObjective) else {}
    assert fields == {**DEFAULTS[name], **weights}
    assert all(isinstance(value, float | int | bool | str | tuple) for value in fields.values())
    hash(OBJECTIVES[name]())  # part of a program's key


@pytest.mark.usually("kd", "at", "crd")
@pytest.mark.parametrize("name", NAMES)
def test_a_step(name, training_batches, examples):
    objective, batch = OBJECTIVES[name](), training_batches()
    variables = initialise(objective, batch, examples)
    total, metrics, batch_stats, gradients = step(objective, batch, variables)
    assert specification(batch_stats) == specification(variables["batch_stats"])
    assert set(metrics) == {"cross_entropy", *OF_TWO_VIEWS.get(name, ("distillation",))}
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), (total, metrics, batch_stats, gradients)))
    of_params, of_student = gradients
    # What learns gets a gradient. (A convolution before batch normalisation may have next to none, but not 0.)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(of_params))
    assert np.abs(of_student.logits).max() > 0 or name == "simkd"
    parts = (*of_student.features, *of_student.preactivations, of_student.pooled, of_student.before_pooling)
    assert any(np.abs(x).max() > 0 for x in parts) == (name not in LOGITS_ONLY)
    if name not in OF_TWO_VIEWS:  # whose terms have tests of their own
        weight = getattr(objective, "weight", 1.0)
        expected = objective.ce_weight * metrics["cross_entropy"] + weight * metrics["distillation"]
        np.testing.assert_allclose(total, expected, rtol=1e-6)
    if name != "simkd":
        np.testing.assert_allclose(
            metrics["cross_entropy"], softmax(batch.student.logits, batch.labels)["loss"], rtol=1e-6
        )


@pytest.mark.usually("shapes0-kd", "shapes0-fitnet", "shapes0-at", "shapes1-ofd", "shapes1-simkd")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shapes", [(VGG, ((8, 5), (8, 5), (4, 7), (2, 10))), (((8, 4), (4, 6), (3, 8)), VGG)])
def test_networks_with_different_stages(name, shapes, training_batches, examples):
    objective, batch = OBJECTIVES[name](), training_batches(*shapes)
    variables = initialise(objective, batch, examples)
    total, _, batch_stats, gradients = jax.eval_shape(partial(step, objective, batch), variables)
    assert total.shape == ()
    assert specification(batch_stats) == specification(variables["batch_stats"])
    assert specification(gradients) == specification((variables["params"], batch.student))


@pytest.mark.usually("kd", "at", "rkd")
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one(name, training_batches, examples):
    objective, batch = OBJECTIVES[name](), training_batches(batch=1)
    total, _, _, gradients = step(objective, batch, initialise(objective, batch, examples))
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), (total, gradients)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, 0.0])
def test_gradients_are_finite_for_equal_outputs(name, value, training_batches, examples):
    """With None the student's outputs are the teacher's; else all outputs are that number: distances are 0."""
    batch = training_batches(teacher=((8, 4), (8, 4), (4, 6), (2, 8)))
    if value is None:
        batch = dataclasses.replace(batch, student=batch.teacher)
    else:
        same = jax.tree.map(lambda x: jnp.full_like(x, value), (batch.student, batch.teacher))
        batch = dataclasses.replace(batch, student=same[0], teacher=same[1])
    objective = OBJECTIVES[name]()
    total, _, _, gradients = step(objective, batch, initialise(objective, batch, examples))
    assert np.isfinite(total)
    for gradient in jax.tree.leaves(gradients):
        assert np.abs(gradient).max() < 1e5  # 1e12 would be finite too


@pytest.mark.usually(
    "bfloat16-kd",
    "bfloat16-dkd",
    "bfloat16-at",
    "bfloat16-crd",
    "float64-mlkd",
    "float64-simkd",
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions(name, dtype, training_batches, examples):
    with jax.enable_x64(dtype == "float64"):
        objective, batch = OBJECTIVES[name](), training_batches(dtype=dtype)
        variables = initialise(objective, batch, examples)
        total, metrics, batch_stats, (_, of_student) = jax.eval_shape(partial(step, objective, batch), variables)
        expected = jnp.dtype("float64" if dtype == "float64" else "float32")
        assert {total.dtype, *(x.dtype for x in metrics.values())} == {expected}
        assert specification(batch_stats) == specification(variables["batch_stats"])
        assert {x.dtype for x in jax.tree.leaves(of_student)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", NAMES)
def test_reads(name, training_batches, examples):
    objective, batch = OBJECTIVES[name](), training_batches()
    assert objective.reads == ("logits" if name in LOGITS_ONLY else "features")
    assert objective.needs_indices == (name == "crd")
    assert objective.needs_epoch == (DEFAULTS[name].get("warmup_epochs", 0) > 0)
    assert objective.needs_strong_view == (name in OF_TWO_VIEWS)
    if name in LOGITS_ONLY:
        cached = Outputs.of_logits(batch.teacher.logits)
        variables = initialise(objective, batch, examples)
        whole, of_logits = (
            objective.loss(variables, dataclasses.replace(batch, teacher=teacher)).total
            for teacher in (batch.teacher, cached)
        )
        assert whole == of_logits


@pytest.mark.usually("dkd-1.0-0.05", "dkd-10.0-0.5", "dkd-20.0-1.0", "dkd-21.0-1.0")
@pytest.mark.parametrize(
    ("name", "epoch", "ramp"),
    [*(("dkd", *each) for each in ((1.0, 0.05), (10.0, 0.5), (20.0, 1.0), (21.0, 1.0))), ("reviewkd", 10.0, 0.5)],
)
def test_warmup(name, epoch, ramp, training_batches, examples):
    objective, batch = OBJECTIVES[name](), training_batches(epoch=epoch)
    total, metrics, _, _ = step(objective, batch, initialise(objective, batch, examples))
    np.testing.assert_allclose(total, metrics["cross_entropy"] + ramp * metrics["distillation"], rtol=1e-6)


def test_no_warmup(training_batches):
    batch = training_batches(epoch=1.0)
    found = OBJECTIVES["dkd"](warmup_epochs=0).loss({}, batch)
    total, metrics = found.total, found.metrics
    np.testing.assert_allclose(total, metrics["cross_entropy"] + metrics["distillation"], rtol=1e-6)


WRONG = [
    *(
        (name, {"ce_weight": -1.0}, r"ce_weight is -1.0: use a number in \[0, 1e\+09\]; 0 leaves the term out")
        for name in NAMES
    ),
    *((name, {"ce_weight": float("nan")}, "ce_weight is nan") for name in NAMES),
    *((name, {"weight": -2.0}, "weight is -2.0") for name in NAMES if "weight" in DEFAULTS[name]),
    *(
        (name, {"temperature": value}, rf"temperature is {re.escape(str(value))}: use a number in \[0.\d+, 10000\]")
        for name in ("kd", "dkd", "dist", "crd")
        for value in (0.0, -4.0, float("inf"), 1e308, 1e-30)
    ),
    ("dkd", {"alpha": -1.0}, "alpha is -1.0"),
    ("dkd", {"beta": -1.0}, "beta is -1.0"),
    ("dkd", {"warmup_epochs": -1}, "warmup_epochs is -1"),
    ("mlkd", {"temperatures": (2.0, 0.0)}, r"temperatures is \(2.0, 0.0\): use 1 or more numbers"),
    ("mlkd", {"temperatures": ()}, r"temperatures is \(\): use 1 or more numbers"),
    ("dist", {"gamma": -1.0}, "gamma is -1.0"),
    ("crld", {"within_weight": -1.0}, "within_weight is -1.0"),
    ("crld", {"weak_threshold": 1.1}, r"weak_threshold is 1.1: use a number in \[0, 1\]"),
    ("crld", {"cross_weight": 0.0, "strong_threshold": 0.3}, "strong_threshold is 0.3, but cross_weight is 0"),
    ("mlkd_two_views", {"temperatures": (4.0, 2.0)}, r"temperatures is \(4.0, 2.0\): use 3 or more numbers"),
    ("fitnet", {"stage": -1}, "stage is -1: use a whole number from 0 to 1000; 0 is the stem"),
    ("at", {"power": 0}, "power is 0: use a whole number from 1 to 8"),
    ("rkd", {"distance_weight": -1.0}, "distance_weight is -1.0"),
    ("rkd", {"angle_weight": -1.0}, "angle_weight is -1.0"),
    ("vid", {"init_variance": 0.0}, "init_variance is 0.0"),
    ("vid", {"init_variance": 1e-6}, r"init_variance is 1e-06: use a number in \(1e-05, 10000\]"),
    ("crd", {"momentum": 1.0}, r"momentum is 1.0: use a number in \[0, 1\)"),
    ("crd", {"negatives": 0}, "negatives is 0"),
    ("crd", {"dim": 0}, "dim is 0"),
    ("reviewkd", {"max_middle": 0}, "max_middle is 0"),
    ("simkd", {"factor": 0}, "factor is 0: use a whole number from 1 to 1024"),
    ("kd", {"ce_weight": 0.0, "weight": 0.0}, "ce_weight and weight are 0, so no term trains: set one"),
    ("rkd", {"ce_weight": 0.0, "distance_weight": 0.0, "angle_weight": 0.0}, "are 0, so no term trains"),
    ("block_kd", {"alpha": 0.0, "beta": 0.0, "gamma": 0.0}, "alpha and beta and gamma are 0"),
    ("kd", {"weight": 0.0, "temperature": 2.0}, "temperature is 2.0, but weight is 0: leave it out, or use a larger"),
    ("dist", {"beta": 0.0, "gamma": 0.0, "standardise": True}, "standardise is True, but beta and gamma are 0: leave"),
    ("block_kd", {"gamma": 0.0, "ensemble_gradient": True}, "ensemble_gradient is True, but gamma is 0"),
    ("dkd", {"warmup_epochs": 2.5}, "warmup_epochs is 2.5: use a whole number"),
    ("kd", {"standardise": 1}, "standardise is 1: use true or false"),
    ("kd", {"weight": True}, "weight is True: use a number"),
    ("block_kd", {"stones": (2, 2)}, r"stones is \(2, 2\)"),
]


@pytest.mark.untyped
@pytest.mark.parametrize(("name", "numbers", "text"), WRONG)
def test_numbers_out_of_range_are_refused(name, numbers, text):
    with pytest.raises(ValueError, match=text):
        OBJECTIVES[name](**numbers)


@pytest.mark.parametrize("name", ["at", "nst", "vid", "ofd", "reviewkd"])
def test_a_stem_alone_has_no_stages_to_pair(name, training_batches, examples):
    with pytest.raises(
        ValueError, match="student of 1 and a teacher of 4 stages, stem included, have no stages to pair"
    ):
        initialise(OBJECTIVES[name](), training_batches(((8, 4),)), examples)


def test_a_hint_at_a_missing_stage_is_refused(training_batches, examples):
    with pytest.raises(ValueError, match="stage is 4: use a stage of the student that is paired .*: 0, 1, 2, 3"):
        initialise(OBJECTIVES["fitnet"](stage=4), training_batches(), examples)
    with pytest.raises(ValueError, match="stage is 0: use a stage of the student that is paired .*: 1, 2, 3, 4"):
        initialise(OBJECTIVES["fitnet"](stage=0), training_batches(VGG), examples)
