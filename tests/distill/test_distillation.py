"""The method `Distillation`: teachers, the deployed network, and bad arguments."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import OBJECTIVES, Distillation, Teacher, outputs
from kd_local.distill.objectives.crld import crld_loss
from kd_local.networks import Network, Variables
from kd_local.parallel import compile_step
from tests.support import tiny

STUDENT = tiny.network(5)
TEACHER_NETWORK = tiny.network(5, width=6)
LIKE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
KEY = jax.random.key(1)


def teacher(seed: int, **options) -> Teacher:
    network = tiny.network(5, width=6, **options)
    return Teacher(network, tiny.variables(network, seed))


def logits_of(network: Network, variables: Variables, images: jax.Array, train: bool = False) -> jax.Array:
    return jax.jit(partial(network.apply, train=train))(variables, images)[0]


def method(*teachers: Teacher, name: str = "kd", **options) -> Distillation:
    return Distillation(STUDENT, teachers, OBJECTIVES[name](), optax.sgd(0.1), **options)


def batch() -> tuple[jax.Array, jax.Array]:
    images = np.random.default_rng(1).standard_normal((6, 8, 8, 3), np.float32)
    return jnp.asarray(images), jnp.arange(6, dtype=jnp.int32) % 5


def step(distillation: Distillation, **extra):
    state = distillation.init(jax.random.key(0), LIKE)
    images, labels = batch()
    return compile_step(distillation, images, labels, extra)(state, images, labels, KEY, extra)


def test_a_step_of_kd_by_its_equation():
    """0.1 CE(S, y) + 0.9 T^2 KL(softmax(T/4) || softmax(S/4)), by numpy, of logits that the networks give."""
    distillation = method(teacher(3))
    state = distillation.init(jax.random.key(0), LIKE)
    images, labels = batch()
    student = distillation.network_variables(state)
    s = np.asarray(logits_of(STUDENT, student, images, train=True), np.float64)
    t = np.asarray(logits_of(TEACHER_NETWORK, state["teacher0"], images), np.float64)

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    cross_entropy = -log_softmax(s)[np.arange(6), np.asarray(labels)].mean()
    p, q = log_softmax(t / 4), log_softmax(s / 4)
    divergence = 16 * (np.exp(p) * (p - q)).sum(axis=1).mean()
    _, metrics = step(distillation)
    found = {name: float(value) for name, value in metrics["student"].items()}
    assert found["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    assert found["distillation"] == pytest.approx(divergence, rel=1e-4, abs=1e-6)
    assert found["loss"] == pytest.approx(0.1 * cross_entropy + 0.9 * divergence, rel=1e-5)


@pytest.mark.long
def test_both_networks_see_both_views():
    """The student's statistics of the strong view go on from those of the weak view."""
    distillation = method(teacher(3), name="crld")
    state = distillation.init(jax.random.key(0), LIKE)
    images, _ = batch()
    strong = images[::-1] * 0.5
    student = distillation.network_variables(state)
    apply = jax.jit(partial(STUDENT.apply, train=True))
    weak_logits, statistics = apply(student, images)
    strong_logits, statistics = apply({**student, "batch_stats": statistics}, strong)
    targets = [logits_of(TEACHER_NETWORK, state["teacher0"], view) for view in (images, strong)]
    expected = crld_loss(weak_logits, targets[0], strong_logits, targets[1])
    after, metrics = step(distillation, images_strong=strong)
    found = metrics["student"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    assert found["cross_entropy"] != found["cross_entropy_strong"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), after["student"]["batch_stats"]["student"], statistics)


def test_without_a_strong_view_its_name_is_given():
    with pytest.raises(ValueError, match="the step also reads images_strong: pass it as extra"):
        distillation = method(teacher(3), name="crld")
        images, labels = batch()
        compile_step(distillation, images, labels)(distillation.init(jax.random.key(0), LIKE), images, labels, KEY)


@pytest.mark.exhaustive
def test_the_loss_of_several_teachers_is_the_mean():
    first, second = teacher(3), teacher(4)
    together = method(first, second)
    start = together.init(jax.random.key(0), LIKE)["student"]
    _, both = step(together)
    losses = []
    for alone in (method(first), method(second)):
        state = alone.init(jax.random.key(0), LIKE)
        # The student as it starts with both.
        params = {**state["student"]["params"], "student": jax.tree.map(jnp.array, start["params"]["student"])}
        state["student"] = {**state["student"], "params": params}
        images, labels = batch()
        _, metrics = compile_step(alone, images, labels)(state, images, labels, KEY)
        losses.append(float(metrics["student"]["loss"]))
    assert losses[0] != losses[1]
    assert float(both["student"]["loss"]) == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_each_teacher_has_its_own_connectors():
    together = replace(method(teacher(3), teacher(4)), objective=OBJECTIVES["fitnet"](stage=1))
    state = together.init(jax.random.key(0), LIKE)
    params = state["student"]["params"]
    assert set(params) == {"student", "teacher0", "teacher1"}
    kernels = [jax.tree.leaves(params[name]) for name in ("teacher0", "teacher1")]
    assert any(bool((a != b).any()) for a, b in zip(*kernels, strict=True))


@pytest.mark.exhaustive
def test_a_teacher_may_compute_in_bfloat16():
    wide, narrow = teacher(3), teacher(3, dtype=jnp.bfloat16)
    _, expected = step(method(wide))
    after, metrics = step(method(narrow))
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(after))
    assert float(metrics["student"]["loss"]) == pytest.approx(float(expected["student"]["loss"]), rel=2e-2)
    assert float(metrics["student"]["loss"]) != float(expected["student"]["loss"])


def test_cached_logits_replace_the_teacher():
    known = teacher(3)
    images, _ = batch()
    logits = logits_of(known.network, known.variables, images)
    expected, metrics = step(method(known))
    cached = method(known, cached=True)
    after, cached_metrics = step(cached, teacher0_logits=logits)
    assert set(after) == {"student"}
    assert cached_metrics["student"]["loss"] == pytest.approx(float(metrics["student"]["loss"]), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after["student"], expected["student"]
    )
    with pytest.raises(ValueError, match="the step also reads teacher0_logits: pass it as extra="):
        step(cached)


def test_one_executable_works_for_every_teacher_with_the_same_network():
    """One compiled step, given the state of another teacher, uses that teacher and compiles nothing."""
    first = method(teacher(3))
    second = replace(first, teachers=(teacher(4),))
    assert first.programs()[0].key == second.programs()[0].key
    losses, compilations = [], []

    def listen(event: str, seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            compilations[-1] += 1

    for one in (first, second):
        state, (images, labels) = one.init(jax.random.key(0), LIKE), batch()
        compilations.append(0)
        jax.monitoring.register_event_duration_secs_listener(listen)
        if one is first:
            compiled_step = compile_step(first, images, labels)
        _, metrics = compiled_step(state, images, labels, KEY)
        jax.monitoring.unregister_event_duration_listener(listen)
        losses.append(float(metrics["student"]["loss"]))
    assert compilations[0] > 0 and compilations[1] == 0
    expected = float(step(second)[1]["student"]["loss"])
    assert losses[0] != losses[1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.exhaustive
def test_the_objective_decides_whether_only_the_student_is_deployed():
    class Copies(OBJECTIVES["kd"]):
        def deployed(self, pair, student, own, teacher):
            return dict(student)  # not asked: only `deploys_student` counts

    alone = replace(method(teacher(3)), objective=Copies())
    reused = method(teacher(3), teacher(4), name="simkd")
    state = alone.init(jax.random.key(0), LIKE)
    assert alone.network_variables(state)["params"] is alone.deployed(state) is state["student"]["params"]["student"]
    state = reused.init(jax.random.key(0), LIKE)
    assert reused.network_variables(state) is None
    assert {name: set(parts) for name, parts in reused.deployed(state).items()} == {
        name: {"student", "projector", "teacher"} for name in ("teacher0", "teacher1")
    }


def test_outputs_equal_those_of_the_network():
    network = TEACHER_NETWORK
    variables = teacher(3).variables
    images, _ = batch()
    for train in (False, True):
        features, statistics = jax.jit(partial(network.features, train=train))(variables, images)
        found, found_statistics = jax.jit(partial(outputs, network, train=train))(variables, images)
        for name, ours, before in zip(network.stages, found.features, found.preactivations, strict=True):
            np.testing.assert_allclose(ours, features[name], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(ours, np.maximum(before, 0))
            assert float(before.min()) < 0
        np.testing.assert_allclose(found.logits, features["head"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.pooled, features["stage1/0"].mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found_statistics, statistics)


def test_bad_arguments_are_refused():
    known = teacher(3)
    with pytest.raises(ValueError, match="no teacher: give at least one"):
        method()
    with pytest.raises(ValueError, match="CRD stores an embedding of every training image: give"):
        method(known, name="crd").init(jax.random.key(0), LIKE)
    with pytest.raises(ValueError, match="examples is 0: use a whole number from 1"):
        replace(method(known), examples=0)
    with pytest.raises(ValueError, match="BlockKD reads the teacher's features, and a cache has its logits only"):
        method(known, name="block_kd", cached=True)
    wrong = Teacher(STUDENT, known.variables)
    with pytest.raises(ValueError, match=r"batch_stats/stage1/0/.* has shape \(.*\), expected \(.*\)"):
        method(wrong).init(jax.random.key(0), LIKE)
    missing = Teacher(TEACHER_NETWORK, {**known.variables, "batch_stats": {}})
    with pytest.raises(ValueError, match="batch_stats/.* is missing, expected"):
        method(missing).init(jax.random.key(0), LIKE)
