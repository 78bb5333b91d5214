"""Saved activations, counted by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from kd_local.local import ContSup, EndToEnd, cut
from kd_local.memory import SummedLosses, saved_activations, saved_bytes
from kd_local.models import create

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


def test_a_relu_keeps_a_mask_of_one_byte_each_and_no_zeros():
    def objective(variables, x):
        return (nn.relu(x * variables["params"]) * 2.0).sum()

    assert saved_bytes(objective, {"params": shaped(4, 5)}, shaped(4, 5)) == 4 * 5 * (4 + 1)


def test_what_is_saved_twice_counts_once():
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

    variables = {key: state[key] for key in ("params", "batch_stats")}
    pixels = BATCH * 32 * 32
    assert saved_bytes(objective, variables, shaped(BATCH, *CIFAR)) == pixels * (3 * 4 + 16 * 4 + 16) + 2 * 16 * 4


def contsup(modules, context="R0", **options):
    network = create("resnet8", classes=10)
    return ContSup(cut(network, modules, classes=10, context=context, **options), OPTIMIZER)


def test_each_module_saves_less_than_the_whole_and_all_together_more():
    network = create("resnet8", classes=10)
    whole = saved_activations(EndToEnd(network, OPTIMIZER), CIFAR, BATCH)["network"]
    each = saved_activations(contsup(4), CIFAR, BATCH)
    together = saved_activations(SummedLosses(contsup(4).cut, OPTIMIZER), CIFAR, BATCH)["network"]
    assert list(each) == ["module00", "module01", "module02", "module03"]
    assert max(each.values()) < whole < together
    # In one function a module's output and the next one's input are one array, and all labels are the same.
    assert 0.9 * sum(each.values()) < together <= sum(each.values())


def test_rematerialisation_saves_the_outputs_of_blocks_alone():
    network = create("resnet8", classes=10)
    plain = saved_activations(EndToEnd(network, OPTIMIZER), CIFAR, BATCH)["network"]
    again = saved_activations(EndToEnd(network, OPTIMIZER, remat=True), CIFAR, BATCH)["network"]
    image, wide, narrow, least = (BATCH * n * 4 for n in (32 * 32 * 3, 32 * 32 * 16, 16 * 16 * 32, 8 * 8 * 64))
    outputs = image + 2 * wide + narrow + least
    assert outputs <= again < outputs + BATCH * 100 < plain


def test_contexts_and_the_batch_count():
    without, with_context = (saved_activations(contsup(3, c), CIFAR, BATCH)["module02"] for c in ("R0", "R1E"))
    assert without < with_context
    twice = saved_activations(contsup(3), CIFAR, 2 * BATCH)["module00"]
    once = saved_activations(contsup(3), CIFAR, BATCH)["module00"]
    assert 1.99 * once < twice < 2 * once


def test_refused():
    with pytest.raises(ValueError, match="batch is 0: use 1 or more images"):
        saved_activations(contsup(3), CIFAR, 0)
