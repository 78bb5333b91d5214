"""Saved activations, counted by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from kd_local.distill import BlockKD, Distillation, Teacher
from kd_local.distill.objectives.kd import KD
from kd_local.local import ContSup, EndToEnd, PixelScale, cut
from kd_local.memory import SummedLosses, saved_activations, saved_bytes
from kd_local.memory.saved import own_activations
from kd_local.models import create
from kd_local.state import variables_of
from tests.support.taught import locally_taught

OPTIMIZER = optax.sgd(0.1, momentum=0.9)
CIFAR = (32, 32, 3)
BATCH = 8


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_two_linear_layers():
    def objective(variables, x):
        hidden = jnp.tanh(x @ variables["params"]["first"])
        return (hidden @ variables["params"]["second"]).sum()

    params = {"first": shaped(5, 7), "second": shaped(7, 3)}
    # The input for the first matrix's gradient, the tanh for the second's and for its own; no parameters.
    assert saved_bytes(objective, {"params": params}, shaped(4, 5)) == 4 * (4 * 5 + 4 * 7 + 4 * 7)


def test_a_relu_saves_a_mask_of_one_byte_per_number():
    def objective(variables, x):
        return (nn.relu(x * variables["params"]) * 2.0).sum()

    assert saved_bytes(objective, {"params": shaped(4, 5)}, shaped(4, 5)) == 4 * 5 * (4 + 1)


def test_an_array_saved_twice_counts_once():
    def objective(variables, x):
        return (x @ variables["params"]["a"] + x @ variables["params"]["b"]).sum()

    params = {"a": shaped(5, 7), "b": shaped(5, 7)}
    assert saved_bytes(objective, {"params": params}, shaped(4, 5)) == 4 * 4 * 5


def test_stem_of_a_network():
    # The image for the filter's gradient, the convolution's output for the normalisation's, mean and deviation (16
    # channels each), the ReLU's mask, its output for the next layer: here the mean over the image, so not at all.
    network = create("resnet8", classes=10)[:1]
    state = jax.eval_shape(EndToEnd(network, OPTIMIZER).init, jax.random.key(0), shaped(1, *CIFAR))["network"]

    def objective(variables, images):
        return network.apply(variables, images, train=True)[0].mean()

    variables = variables_of(state)
    pixels = BATCH * 32 * 32
    assert saved_bytes(objective, variables, shaped(BATCH, *CIFAR)) == pixels * (3 * 4 + 16 * 4 + 16) + 2 * 16 * 4


def contsup(modules, context="R0", **options):
    network = create("resnet8", classes=10)
    return ContSup(cut(network, modules, classes=10, context=context, **options), OPTIMIZER)


@pytest.mark.exhaustive
def test_each_module_saves_less_than_the_whole_and_all_together_more():
    network = create("resnet8", classes=10)
    whole = saved_activations(EndToEnd(network, OPTIMIZER), CIFAR, BATCH)["network"]
    each = saved_activations(contsup(4), CIFAR, BATCH)
    together = saved_activations(SummedLosses(contsup(4).cut_network, OPTIMIZER), CIFAR, BATCH)["network"]
    assert list(each) == ["module00", "module01", "module02", "module03"]
    assert max(each.values()) < whole < together
    # In one function a module's output and the next one's input are one array, and all labels are the same.
    assert 0.9 * sum(each.values()) < together <= sum(each.values())


@pytest.mark.exhaustive
def test_rematerialisation_saves_the_outputs_of_blocks_alone():
    network = create("resnet8", classes=10)
    plain = saved_activations(EndToEnd(network, OPTIMIZER), CIFAR, BATCH)["network"]
    again = saved_activations(EndToEnd(network, OPTIMIZER, remat=True), CIFAR, BATCH)["network"]
    image, wide, narrow, least = (BATCH * n * 4 for n in (32 * 32 * 3, 32 * 32 * 16, 16 * 16 * 32, 8 * 8 * 64))
    outputs = image + 2 * wide + narrow + least
    assert outputs <= again < outputs + BATCH * 100 < plain


@pytest.mark.exhaustive
def test_contexts_and_the_batch_count():
    without, with_context = (saved_activations(contsup(3, c), CIFAR, BATCH)["module02"] for c in ("R0", "R1E"))
    assert without < with_context
    twice = saved_activations(contsup(3), CIFAR, 2 * BATCH)["module00"]
    once = saved_activations(contsup(3), CIFAR, BATCH)["module00"]
    assert 1.99 * once < twice < 2 * once


@pytest.mark.exhaustive
def test_constants_do_not_count():
    decoding = contsup(3, decoder=PixelScale((0.5,) * 3, (0.2,) * 3))
    module = decoding.cut_network.modules[0]
    images, labels = shaped(BATCH, *CIFAR), shaped(BATCH, dtype=jnp.int32)
    state = jax.eval_shape(decoding.init, jax.random.key(0), images)[module.name]

    def objective(variables, images, labels):
        return module.evaluate(variables, [images], labels, train=True)[0]["loss"]

    variables = variables_of(state)
    # Weights of the loss are numbers there, and arguments of the program.
    assert saved_activations(decoding, CIFAR, BATCH)[module.name] == saved_bytes(objective, variables, images, labels)


def methods():
    """A ResNet-8 by itself, by plain KD, by Block-KD and in modules, the teacher a ResNet-14."""
    student, network = create("resnet8", classes=10), create("resnet14", classes=10)
    variables = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(network.init, jax.random.key(0), shaped(1, *CIFAR))
    )
    teacher = Teacher(network, variables)
    return (
        EndToEnd(student, OPTIMIZER),
        Distillation(student, (teacher,), KD(), OPTIMIZER),
        Distillation(student, (teacher,), BlockKD(), OPTIMIZER),
        locally_taught(student, teacher, CIFAR, OPTIMIZER),
    )


@pytest.mark.exhaustive
def test_distillation():
    alone, kd, block_kd, local = (saved_activations(method, CIFAR, BATCH) for method in methods())
    # KD saves nothing of the teacher but what the loss computes from its logits: a few numbers for each image.
    assert alone["network"] < kd["student"] < alone["network"] + BATCH * 600
    # Block-KD saves activations of the teacher's remaining blocks, but none of its parameters.
    assert block_kd["student"] > 1.5 * kd["student"]
    assert list(local) == ["teacher", "module00", "module01", "module02"]
    assert local["teacher"] == 0 < local["module02"] < local["module01"] < local["module00"] < block_kd["student"]


def test_own_activations_are_the_outputs_of_convolutions():
    # A block has two convolutions, and where it makes the image smaller a third, the projection. Means and variances,
    # matrix products too, are small; the head's product is not needed again.
    own = own_activations(create("resnet8", classes=10), CIFAR, BATCH)
    wide, narrow, least = (BATCH * n * 4 for n in (32 * 32 * 16, 16 * 16 * 32, 8 * 8 * 64))
    expected = {"stem": wide, "stage1/0": 2 * wide, "stage2/0": 3 * narrow, "stage3/0": 3 * least, "head": 0}
    assert own == pytest.approx(expected, rel=0.01)
    half = own_activations(create("resnet8", classes=10, dtype=jnp.bfloat16), CIFAR, BATCH)
    assert half == pytest.approx({name: size / 2 for name, size in expected.items()}, rel=0.02)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch is 0: use"):
        saved_activations(contsup(3), CIFAR, 0)
