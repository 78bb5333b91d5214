"""What local learning is for: the largest module's step needs a fraction of the end-to-end step's memory."""

import jax
import jax.numpy as jnp
import optax
import pytest

from kd_local.local import ContSup, EndToEnd, cut
from kd_local.models import create
from kd_local.parallel import Step

NETWORK = create("resnet32", classes=10)
OPTIMIZER = optax.sgd(0.1, momentum=0.9, nesterov=True)


def needed(method, batch: int) -> dict[str, int]:
    """Bytes of each executable: temporary, arguments and outputs, less what is aliased."""
    images = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda: method.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    sizes = {}
    for name, lowered in Step(method).lower(state, images, labels, rng).items():
        memory = lowered.compile().memory_analysis()
        sizes[name] = (
            memory.temp_size_in_bytes
            + memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
        )
    return sizes


@pytest.fixture(scope="module")
def end_to_end() -> int:
    return needed(EndToEnd(NETWORK, OPTIMIZER), 256)["network"]


def test_greedy_local_learning_in_sixteen_modules(end_to_end):
    sizes = needed(ContSup(cut(NETWORK, 16, classes=10, context="R0"), OPTIMIZER), 256)
    assert len(sizes) == 7
    assert max(sizes.values()) <= 0.20 * end_to_end


def test_modules_that_are_alike_share_executables_with_context_too():
    for context in ("R1", "R1E"):
        method = ContSup(cut(NETWORK, 16, classes=10, context=context), OPTIMIZER)
        images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
        labels = jax.ShapeDtypeStruct((8,), jnp.int32)
        state = jax.eval_shape(lambda method=method: method.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
        assert len(Step(method).lower(state, images, labels, jax.eval_shape(lambda: jax.random.key(0)))) == 10
