"""Sequences with class tokens: their patches as maps, connectors to and from them, and Block-KD with them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import BlockKD, Connector, Distillation, Teacher
from kd_local.distill.tokens import grid_of, join_tokens, split_tokens
from kd_local.models import resnet
from kd_local.models.class_token import class_token_transformer
from kd_local.networks import Network
from tests.support import tiny

CNN = resnet(8, classes=5, widths=(4, 4, 6, 8))
TOKENS = class_token_transformer(classes=5, width=12, heads=3, depth=4, patch_size=2)
COARSE = class_token_transformer(classes=5, width=8, heads=2, depth=4, patch_size=4)
LIKE = jax.ShapeDtypeStruct((6, 8, 8, 3), jnp.float32)
PAIRS = {"to maps": (TOKENS, CNN), "from maps": (CNN, TOKENS), "between tokens": (COARSE, TOKENS)}


def test_patches_of_a_sequence_are_a_map_row_after_row():
    x = jnp.arange(2 * 5 * 3.0).reshape(2, 1, 5, 3)
    tokens, patches = split_tokens(x, 1)
    np.testing.assert_array_equal(tokens[:, 0, 0], x[:, 0, 0])
    np.testing.assert_array_equal(patches[:, 1, 0], x[:, 0, 3])
    np.testing.assert_array_equal(join_tokens(tokens, patches), x)
    tokens, same = split_tokens(patches, 0)
    assert tokens.shape == (2, 1, 0, 3)
    assert same is patches


@pytest.mark.parametrize("shape", [(1, 1, 7, 3), (1, 1, 1, 3)])
def test_a_sequence_without_a_square_of_patches_is_refused(shape):
    with pytest.raises(ValueError, match=r"\d patches after 1 class token.* form no square.*: use square images"):
        grid_of(shape, 1)


def connected(pair: str, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A connector in evaluation mode at its start, by numpy."""
    y = np.asarray(x, np.float64)
    if pair == "to maps":  # 4x4 patches, each with the class token added
        y = (y[:, 0, 1:] + y[:, 0, :1]).reshape(-1, 4, 4, y.shape[3])
    y = y @ np.asarray(kernel, np.float64)[0, 0] / np.sqrt(1 + 1e-5)
    if pair == "to maps":
        return np.maximum(y, 0)
    if pair == "from maps":
        patches = y.reshape(len(y), 1, -1, y.shape[3])
        return np.concatenate([patches.mean(axis=2, keepdims=True), patches], axis=2)
    patches = jax.image.resize(y[:, 0, 1:].reshape(-1, 2, 2, y.shape[3]), (len(y), 4, 4, y.shape[3]), "bilinear")
    return np.concatenate([y[:, :, :1], np.asarray(patches).reshape(len(y), 1, -1, y.shape[3])], axis=2)


SHAPES = {  # of input and output
    "to maps": ((6, 1, 17, 12), (4, 4, 6)),
    "from maps": ((6, 4, 4, 6), (1, 17, 12)),
    "between tokens": ((6, 1, 5, 8), (1, 17, 12)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_connector_by_numpy(pair):
    given, wanted = SHAPES[pair]
    x = jnp.asarray(np.random.default_rng(0).standard_normal(given), jnp.float32)
    tokens = tuple(network.class_tokens for network in PAIRS[pair])
    connector = Connector(wanted, relu=pair == "to maps", class_tokens=tokens)
    variables = connector.init(jax.random.key(1), x, train=False)
    found = connector.apply(variables, x, train=False)
    assert found.shape == (6, *wanted)
    expected = connected(pair, x, variables["params"]["conv"]["conv"]["kernel"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def method(student: Network, teacher: Network, objective: BlockKD) -> Distillation:
    return Distillation(student, (Teacher(teacher, tiny.variables(teacher, 3)),), objective, optax.sgd(0.1))


@pytest.mark.parametrize("pair", [pytest.param(pair, marks=pytest.mark.exhaustive) for pair in PAIRS])
def test_the_stones_of_block_kd(pair):
    """The student's blocks, the connector and the teacher's remaining blocks, one after the other."""
    student, teacher = PAIRS[pair]
    distillation = method(student, teacher, BlockKD())
    images, _ = tiny.batch()
    state = jax.jit(partial(distillation.init, images=LIKE))(jax.random.key(0))
    features, _ = student.features(distillation.network_variables(state), images, train=False)
    kernels = state["student"]["params"]["teacher0"]
    found = distillation.exits(state, images)
    assert list(found) == ["stone1", "stone2", "stone3"] + ["stone4"] * (pair == "between tokens")
    of_student, of_teacher = (network.stages[-len(found) :] for network in (student, teacher))
    compared = 0
    for i, (stone, logits) in enumerate(found.items()):
        x = connected(pair, features[of_student[i]], kernels[stone]["conv"]["conv"]["kernel"])
        if pair != "between tokens":
            like = jax.eval_shape(partial(teacher.features, train=False), state["teacher0"], images)[0][of_teacher[i]]
            if x.shape[1:] != like.shape[1:]:
                continue  # resized
        remaining = teacher[teacher.position(of_teacher[i]) + 1 :]
        expected, _ = remaining.apply(remaining.select(state["teacher0"]), jnp.asarray(x, jnp.float32), train=False)
        np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=1e-4)
        compared += 1
    assert compared


@pytest.mark.long
@pytest.mark.usually("to maps")
@pytest.mark.parametrize("pair", PAIRS)
def test_the_last_stone_trains_what_the_students_logits_depend_on(pair):
    """The gradient of the last stone's logits by the student's last features reaches the class token."""
    student, teacher = PAIRS[pair]
    shapes = [
        jax.eval_shape(partial(network.features, train=False), tiny.variables(network), LIKE)[0]
        for network in (student, teacher)
    ]
    given, wanted = (shape[network.stages[-1]] for shape, network in zip(shapes, PAIRS[pair], strict=True))
    connector = Connector(wanted.shape[1:], class_tokens=(student.class_tokens, teacher.class_tokens), relu=False)
    x = jax.random.normal(jax.random.key(0), given.shape)
    variables = connector.init(jax.random.key(1), x, train=False)
    head, own = teacher.modules[-1], {"params": tiny.variables(teacher)["params"]["head"]}

    def logits(x: jax.Array) -> jax.Array:
        return jnp.square(head.apply(own, connector.apply(variables, x, train=False), train=False)).sum()

    gradient = jax.grad(logits)(x)
    read = gradient[:, :, :1] if student.class_tokens else gradient
    assert np.abs(read).max() > 0


@pytest.mark.long
@pytest.mark.parametrize("pair", PAIRS)
def test_a_step_of_block_kd_has_gradients_for_every_connector(pair):
    student, teacher = PAIRS[pair]
    distillation = method(student, teacher, BlockKD(stones=(1, 3)))
    state = jax.eval_shape(partial(distillation.init, images=LIKE), jax.random.key(0))
    labels = jax.ShapeDtypeStruct((6,), jnp.int32)
    program = distillation.programs()[0]
    after, _, metrics = jax.eval_shape(
        program.function, state["student"], (state["teacher0"],), (LIKE, labels), jax.random.key(0), jnp.zeros(0)
    )
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state["student"])
    assert {"stone1_accuracy", "stone3_accuracy"} < set(metrics)
