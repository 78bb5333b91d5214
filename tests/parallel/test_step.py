"""Both forms of a step: an executable for each program, and one for all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.local import ContSup, cut
from kd_local.models import resnet
from kd_local.parallel import Step

METHOD = ContSup(cut(resnet(8, classes=10), 4, classes=10, context="R1E"), optax.sgd(0.1, momentum=0.9))
KEY = jax.random.key(2)


def test_joined_takes_the_step_that_separate_takes():
    images, labels = jax.random.normal(KEY, (6, 8, 8, 3)), jnp.arange(6, dtype=jnp.int32)
    results = []
    for form in ("separate", "joined"):
        step = Step(METHOD, form=form)
        state, metrics = step(METHOD.init(KEY, images), jnp.array(images), jnp.array(labels), KEY)
        results.append((state, metrics, step.metrics))
    (separate, metrics, names), (joined, joined_metrics, joined_names) = results
    assert names == joined_names
    assert list(joined) == list(separate)
    for a, b in ((separate, joined), (metrics, joined_metrics)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


def test_joined_orders_the_programs_by_barriers():
    images = jax.ShapeDtypeStruct((6, 8, 8, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((6,), jnp.int32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(METHOD.init, rng, images)
    (call,) = Step(METHOD, form="joined").calls(state, images, labels, rng)
    jaxpr = jax.make_jaxpr(call.piece.run)(*call.arguments).jaxpr
    # Each waits for all that the one before owns: parameters, momentum and statistics.
    tied = [len(e.invars) for e in jaxpr.eqns if e.primitive.name == "optimization_barrier" and len(e.invars) > 1]
    parts = [len(jax.tree.leaves(state[name])) for name in list(state)[:-1]]
    reads = [len(program.reads) for program in METHOD.programs()[1:]]
    assert tied == [part + read for part, read in zip(parts, reads, strict=True)]


def test_unknown_forms():
    with pytest.raises(ValueError, match=r"^unknown form of the step 'whole': use separate or joined"):
        Step(METHOD, form="whole")
