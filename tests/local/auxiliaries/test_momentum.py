"""MAN and MAN++ against a computation by hand, and their limits."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.local import ContSup, Momentum, PixelScale, cut, man_plus_boundaries
from kd_local.models import create, vision_transformer
from kd_local.models.ends import Classifier
from kd_local.models.normalization import BatchNorm
from kd_local.networks import Network
from kd_local.parallel import compile_step
from tests.support import tiny

RATE, SHARE, STEPS = 0.5, 0.75, 2


class Mix(nn.Module):
    """A linear map of the channels, and batch normalisation."""

    features: int
    norm: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        x = x @ self.param("kernel", nn.initializers.normal(), (x.shape[-1], self.features), jnp.float32)
        return BatchNorm(name="norm")(x, train=train) if self.norm else x


def network(*, norm: bool) -> Network:
    blocks = {"stem": Mix(4, norm), "stage1/0": Mix(5, norm), "stage1/1": Mix(3, norm), "head": Classifier(3)}
    return Network.of(blocks)


BOUNDARIES = ("stem", "stage1/0")


def softmax_gradient(logits, labels):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    return loss, (probabilities - np.eye(logits.shape[1])[labels]) / len(labels)


def by_hand(part, average, following, pooled, labels, *, trained):
    """`(part, average, output, loss)` after a step of a module of one linear block W. All maps are linear, so the head
    reads the mean over the positions, and M = s LB + (2 - s) E is one matrix."""
    block, twin = part["blocks"]["0"]["kernel"], part["twin"]["kernel"]
    dense = part["head"]["linear0"]["dense"]
    scale = part["scale"]["scale"] if trained else 1.0
    both = scale * twin + (2 - scale) * average
    features = pooled @ block @ both
    loss, g = softmax_gradient(features @ dense["kernel"] + dense["bias"], labels)
    of_both = (pooled @ block).T @ g @ dense["kernel"].T
    gradients = {
        "blocks": {"0": {"kernel": pooled.T @ g @ dense["kernel"].T @ both.T}},
        "twin": {"kernel": scale * of_both},
        "head": {"linear0": {"dense": {"kernel": features.T @ g, "bias": g.sum(axis=0)}}},
        **({"scale": {"scale": (of_both * (twin - average)).sum()}} if trained else {}),
    }
    new = jax.tree.map(lambda p, gradient: p - RATE * gradient, part, gradients)
    return new, SHARE * average + (1 - SHARE) * following, pooled @ block, loss


@pytest.mark.parametrize("scale", ["fixed", "trained"])
@jax.numpy_dtype_promotion("standard")
def test_two_steps_by_hand(scale):
    rule = Momentum(momentum=SHARE, scale=scale)
    cut_network = cut(network(norm=False), classes=3, boundaries=BOUNDARIES, context="R0", head="0c1f", auxiliary=rule)
    method, random = ContSup(cut_network, optax.sgd(RATE)), np.random.default_rng(0)
    images, labels = random.standard_normal((6, 2, 2, 3)), np.arange(6, dtype=np.int32) % 3
    with jax.enable_x64(True):
        shapes = jax.eval_shape(method.init, jax.random.key(0), jax.ShapeDtypeStruct(images.shape, jnp.float32))
        state = jax.tree.map(lambda x: random.uniform(0.3, 0.9, x.shape), shapes)
        parts = {name: part["params"] for name, part in state.items()}
        step = compile_step(method, images, labels, state=state)
        for _ in range(STEPS):
            state, metrics = step(state, images, labels, jax.random.key(0))
            x, after = images.mean(axis=(1, 2)), {}
            for number, (module, average) in enumerate((("module00", "average00"), ("module01", "average01"))):
                following = parts[f"module{number + 1:02d}"]["blocks"]["0"]["kernel"]  # before this step's update
                after[module], kernel, x, loss = by_hand(
                    parts[module], parts[average]["kernel"], following, x, labels, trained=scale == "trained"
                )
                after[average] = {"kernel": kernel}
                np.testing.assert_allclose(metrics[module]["loss"], loss, rtol=1e-12)
            after["module02"] = jax.device_get(state["module02"]["params"])  # the last module has no auxiliary network
            found = {name: part["params"] for name, part in state.items()}
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), found, after)
            parts = after


MODULES = ("module00", "module01", "module02")


def cut_after(*boundaries, decoder=None, **options):
    rule, of = Momentum(**options), create("resnet14", classes=10)
    return cut(of, classes=10, boundaries=boundaries, context="R0", auxiliary=rule, decoder=decoder)


@cache
def normalised():
    of, rule = network(norm=True), Momentum()
    cut_network = cut(of, classes=3, boundaries=BOUNDARIES, context="R0", head="0c1f", auxiliary=rule)
    return cut_network, cut_network.init(jax.random.key(0), jax.ShapeDtypeStruct((6, 8, 8, 3), jnp.float32))


def test_a_decoder_reads_the_sum():
    pixels = PixelScale(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    cut_network = cut_after("stage1/0", "stage1/1", decoder=pixels)
    variables = jax.eval_shape(cut_network.init, jax.random.key(0), images)
    # The block after the second boundary has 32 channels.
    channels = [variables[name]["params"]["decoder"]["conv1"]["conv"]["kernel"].shape[2] for name in MODULES[:2]]
    assert channels == [16, 32]


@pytest.mark.long
def test_the_average_has_random_parameters_of_its_own_and_the_module_its_statistics():
    cut_network, variables = normalised()
    assert set(variables) == {*MODULES, "average00", "average01"}
    assert variables["average00"]["batch_stats"] == {}
    assert set(variables["module00"]["params"]) == {"blocks", "twin", "head"}
    kernels = [
        params["kernel"]
        for params in (
            variables["average00"]["params"],
            variables["module00"]["params"]["twin"],
            variables["module01"]["params"]["blocks"]["0"],
        )
    ]
    assert not any(np.array_equal(kernels[i], kernels[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
    updated = jax.jit(cut_network.losses)(variables, *tiny.batch(classes=3)).batch_stats["module00"]
    for name in ("twin", "average"):
        before = variables["module00"]["batch_stats"][name]["norm"]["mean"]
        assert not np.array_equal(updated[name]["norm"]["mean"], before)


def test_no_gradient_reaches_the_average_or_another_module():
    cut_network, variables = normalised()
    images, labels = tiny.batch(classes=3)
    params = {name: part["params"] for name, part in variables.items()}

    def loss(params, name):
        with_params = {part: {**of, "params": params[part]} for part, of in variables.items()}
        return cut_network.losses(with_params, images, labels).losses[name]

    gradients = jax.jit(jax.grad(loss), static_argnums=1)(params, "module00")
    for name, of_part in gradients.items():
        norms = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(of_part)]
        assert (max(norms) > 0) if name == "module00" else (max(norms) == 0), name


def test_the_deployed_network_has_no_average_but_an_early_exit_has():
    cut_network, state = normalised()
    last, early = (ContSup(cut_network, optax.sgd(0.1), answer) for answer in ("last", "module00"))
    assert {name: set(params) for name, params in last.deployed(state).items()} == {
        name: {"blocks"} for name in MODULES
    }
    assert set(early.deployed(state)) == {"module00", "average00"}
    assert set(early.deployed(state)["module00"]) == {"blocks", "twin", "head"}


VIT = vision_transformer(classes=5, width=12, heads=3, depth=4, patch_size=4)


def test_the_variant_for_vision_transformers_has_a_second_block_and_the_network_s_classifier():
    rule = Momentum(scale="trained", blocks=2)
    cut_network = cut(VIT, classes=5, boundaries=("stage1/0", "stage2/0"), context="R0", auxiliary=rule)
    variables = jax.eval_shape(cut_network.init, jax.random.key(0), jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32))
    params = variables["module01"]["params"]
    assert set(params) == {"blocks", "twin", "scale", "further0", "head"}
    structure = jax.tree.structure(params["blocks"]["0"])
    assert jax.tree.structure(params["twin"]) == jax.tree.structure(params["further0"]) == structure
    assert jax.tree.structure(params["head"]) == jax.tree.structure(variables["module02"]["params"]["blocks"]["2"])
    assert jax.eval_shape(cut_network.losses, variables, *tiny.batch(4, classes=5)).logits.shape == (4, 5)


@pytest.mark.long
def test_the_stem_of_man_plus_has_its_own_head_and_loss_in_the_authors_code():
    of = create("resnet32", classes=10)
    boundaries = man_plus_boundaries(of, 9)
    make = partial(cut, of, classes=10, boundaries=boundaries, context="R0", head="2c2f")
    plain, faithful = (make(auxiliary=Momentum(scale="trained", faithful=flag)) for flag in (False, True))
    first, second = faithful.modules[:2]
    assert (first.auxiliary.head.kind, first.auxiliary.head.outputs, first.classifies) == ("1c2f", 128, False)
    assert set(first.loss(jnp.ones((4, 128)), jnp.arange(4))) == {"loss"}  # no accuracy: contrastive
    assert (second.auxiliary.head.kind, second.auxiliary.head.outputs, second.classifies) == ("2c2f", 10, True)
    assert faithful.modules[1:] == plain.modules[1:]
    assert faithful.heads_for("ensemble")[0] == "module01"


def test_blocks_that_cannot_be_copied_are_refused():
    cut_after("stage3/0")
    with pytest.raises(ValueError, match=r"MAN copies 1 block after stage3/1, but the network's last layers, head, can"
                       r"not be copied: cut after stage3/0 or before"):  # fmt: skip
        cut_after("stage2/0", "stage3/1")
    with pytest.raises(ValueError, match=r"MAN copies 2 blocks after stage3/0, .*: cut after stage2/1 or before"):
        cut_after("stage3/0", blocks=2)


def test_senseless_options_are_refused():
    with pytest.raises(ValueError, match="faithful is True, but the first module ends after stage1/0: cut after stem"):
        cut_after("stage1/0", faithful=True)
    with pytest.raises(ValueError, match="faithful is True, but with blocks=2 the stem has no head"):
        Momentum(faithful=True, blocks=2)
    with pytest.raises(ValueError, match="head is 2c2f, but the auxiliary network Momentum has no head: leave head"):
        cut(VIT, classes=5, boundaries=("stage1/0",), context="R0", head="2c2f", auxiliary=Momentum(blocks=2))
    for wrong in ({"momentum": 1.0}, {"momentum": -0.1}, {"scale": "free"}, {"blocks": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Momentum(**wrong)
