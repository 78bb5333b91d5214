"""A compiled step: its two forms, its plan, and bad arguments."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.contract import Program
from kd_local.local import ContSup, cut
from kd_local.parallel import StepOptions, compile_step, device_mesh, plan_step
from tests.support import tiny

METHOD = ContSup(cut(tiny.network(10), 3, classes=10, context="R1E"), optax.sgd(0.1, momentum=0.9))
KEY = jax.random.key(2)
JOINED = StepOptions(form="joined")


def batch(size=6):
    return jax.random.normal(KEY, (size, 8, 8, 3)), jnp.arange(size, dtype=jnp.int32)


@pytest.mark.exhaustive
def test_joined_and_separate_steps_are_equal():
    images, labels = batch()
    results = []
    for form in ("separate", "joined"):
        step = compile_step(METHOD, images, labels, options=StepOptions(form=form))
        state, metrics = step(METHOD.init(KEY, images), jnp.array(images), jnp.array(labels), KEY)
        results.append((state, metrics, step.plan.metrics))
    (separate, metrics, names), (joined, joined_metrics, joined_names) = results
    assert names == joined_names == tuple(sorted((name, metric) for name in metrics for metric in metrics[name]))
    assert list(joined) == list(separate)
    for a, b in ((separate, joined), (metrics, joined_metrics)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


@dataclass(frozen=True)
class Independent:
    """Three programs that read the images alone. Each computes with a primitive of its own."""

    deployed_program = None

    def init(self, rng, images):
        return {name: {"params": {"a": jnp.ones(3), "b": jnp.ones(3)}} for name in ("cos", "tan", "exp")}

    def programs(self):
        def program(name):
            def function(part, frozen, tensors, rng, constants):
                loss = getattr(jnp, name)(tensors[0]).mean()
                return jax.tree.map(lambda x: x - loss, part), (), {"loss": loss}

            return Program(name, name, function, ("images",))

        return tuple(map(program, ("cos", "tan", "exp")))

    def logits(self, state, images):
        return images.mean(axis=(1, 2))

    def exits(self, state, images):
        return {}

    def deployed(self, state):
        return {}


def test_joined_programs_run_one_after_another():
    """Otherwise XLA may run forward passes of several modules first, with the activations of all of them in memory."""
    (call,) = plan_step(Independent(), *batch(), options=JOINED).calls
    jaxpr = jax.make_jaxpr(call.piece.run)(*call.arguments).jaxpr
    made_by = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}

    def needs(variables, seen):
        """The primitives that must run before these variables exist."""
        for variable in variables:
            equation = made_by.get(variable) if isinstance(variable, jax.extend.core.Var) else None
            if equation is not None and id(equation) not in seen:
                seen[id(equation)] = equation.primitive.name
                needs(equation.invars, seen)
        return set(seen.values())

    inputs = {e.primitive.name: e.invars for e in jaxpr.eqns if e.primitive.name in ("cos", "tan", "exp")}
    assert {name: needs(read, {}) & inputs.keys() for name, read in inputs.items()} == {
        "cos": set(), "tan": {"cos"}, "exp": {"cos", "tan"}
    }  # fmt: skip
    updates = {name: needs(read, {}) for name, read in inputs.items()}
    assert all("sub" in updates[name] for name in ("tan", "exp")), "the update, not only the loss"


@pytest.mark.exhaustive
def test_another_batch_size_is_refused_and_can_be_compiled():
    images, labels = batch()
    step = compile_step(METHOD, images, labels)
    small = step.for_batch(2)
    assert small.plan.batch["images"].shape == (2, 8, 8, 3) and small.plan.placement == step.plan.placement
    state = METHOD.init(KEY, images)
    with pytest.raises(ValueError, match=r"^images of shape \(2, 8, 8, 3\), but the step is compiled for \(6, "):
        step(state, images[:2], labels[:2], KEY)
    expected = compile_step(METHOD, images[:2], labels[:2])(jax.tree.map(jnp.copy, state), images[:2], labels[:2], KEY)
    jax.tree.map(np.testing.assert_array_equal, small(state, images[:2], labels[:2], KEY), expected)


@pytest.mark.long
def test_a_donated_state_is_refused():
    images, labels = batch()
    step, state = compile_step(METHOD, images, labels), METHOD.init(KEY, images)
    kept = jax.tree.map(jnp.copy, state)
    step(state, images, labels, KEY)
    with pytest.raises(ValueError, match=r"^module00 got arrays that were donated .* use the state that this step"):
        step(state, images, labels, KEY)
    step(kept, images, labels, KEY)


@pytest.mark.long
def test_a_plan_compiles_nothing():
    seen: list[str] = []
    listen = lambda event, seconds, **_: seen.append(event) if "backend_compile" in event else None
    images, labels = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    plan = plan_step(Independent(), images, labels, mesh=device_mesh(2, 2))
    jax.monitoring.unregister_event_duration_listener(listen)
    assert not seen
    assert len(plan.calls) == 3 and sorted(set(plan.placement)) == [0, 1]
    assert [name for group in plan.programs for name in group] == ["cos", "tan", "exp"]
    assert [name for name, _ in plan.metrics] == ["cos", "exp", "tan"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "whole"}, "unknown form of the step 'whole': use separate or joined"),
        ({"shard": "all"}, "unknown part of the state to shard 'all': use nothing, optimizer or state"),
        ({"batch_norm": "globl"}, r"unknown batch normalisation 'globl': use global or device \(nearest: global\)"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        StepOptions(**options)
