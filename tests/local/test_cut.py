"""The reference form of local learning against the loss of each module alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.local import cut
from kd_local.models import resnet
from kd_local.networks import by_block, of_block
from tests.support import tiny

NETWORK = resnet(8, classes=10)
IMAGES = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
LABELS = jnp.arange(8, dtype=jnp.int32)
CONTEXTS = ["R0", "E", "R1", "R1E", "R3", "R2E"]


def make(context: str, modules: int = 4, **arguments):
    cut_network = cut(NETWORK, modules, classes=10, context=context, **arguments)
    return cut_network, tiny.variables(cut_network)


def with_params(variables, params):
    return {name: {**part, "params": params[name]} for name, part in variables.items()}


def norm(tree) -> float:
    return float(np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(jax.device_get(tree)))))


def losses(cut_network, variables, params):
    return cut_network.losses(with_params(variables, params), IMAGES, LABELS).losses


@pytest.mark.usually("R2E")
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_loss_has_gradients_in_its_own_module_only(context):
    cut_network, variables = make(context)
    params = {name: part["params"] for name, part in variables.items()}

    @jax.jit
    def gradient(weights):
        return jax.vjp(partial(losses, cut_network, variables), params)[1](weights)[0]

    # Row i: the gradient of loss i alone. The sum's gradient must be the diagonal.
    zeros = {name: jnp.float32(0) for name in params}
    jacobian = {name: gradient({**zeros, name: jnp.float32(1)}) for name in params}
    total = gradient({name: jnp.float32(1) for name in params})
    for loss, rows in jacobian.items():
        for module, gradient in rows.items():
            size = norm(gradient)
            if loss != module:
                assert size == 0.0, f"the loss of {loss} reaches the parameters of {module}"
            else:
                for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(total[module]), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * size)
                for path, leaf in jax.tree.leaves_with_path(gradient):
                    # A bias before batch normalisation has no effect: its gradient is rounding noise.
                    if "bias" not in jax.tree_util.keystr(path):
                        assert np.abs(leaf).max() > 0, (module, path)


@pytest.mark.usually("R0")
@pytest.mark.parametrize("context", ["R0", "R1E"])
def test_a_modules_gradient_depends_on_its_inputs_only(context):
    """The gradient of module 2, computed with its inputs as constants."""
    cut_network, variables = make(context)
    module = cut_network.modules[2]
    tensors = {"images": IMAGES}
    for before in cut_network.modules[:2]:
        read = [tensors[name] for name in before.reads]
        x, output, _ = jax.jit(partial(before.apply, train=True))(variables[before.name], read)
        tensors |= dict(zip(before.writes, before.written(x, output), strict=True))

    def own_loss(params):
        own = {**variables[module.name], "params": params}
        read = [tensors[name] for name in module.reads]
        return module.evaluate(own, read, LABELS, train=True)[0]["loss"]

    params = {name: part["params"] for name, part in variables.items()}
    gradient = jax.jit(jax.grad(own_loss))(params[module.name])
    whole = jax.jit(jax.grad(lambda p: losses(cut_network, variables, p)[module.name]))(params)[module.name]
    scale = norm(whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), gradient, whole)


def test_without_cuts_every_block_has_gradients():
    """The isolation test can fail: end to end, the loss of the same network has gradients in every block."""
    cut_network, variables = make("R0", modules=1)
    gradient = jax.jit(jax.grad(lambda p: losses(cut_network, variables, {"module00": p})["module00"]))(
        variables["module00"]["params"]
    )
    assert all(norm(block) > 0 for block in gradient["blocks"].values())


def test_one_module_computes_the_network():
    cut_network, variables = make("R1E", modules=1)
    outputs = jax.jit(cut_network.losses)(variables, IMAGES, LABELS)
    blocks = of_block(variables["module00"], "blocks")
    own = by_block({name: of_block(blocks, str(i)) for i, name in enumerate(NETWORK.names)})
    logits, _ = jax.jit(partial(NETWORK.apply, train=True))(own, IMAGES)
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-6)
    expected = optax.losses.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()
    np.testing.assert_allclose(outputs.losses["module00"], expected, rtol=1e-6)


def test_r1e_equals_e_with_two_modules():
    first, second = make("E", modules=2)[0], make("R1E", modules=2)[0]
    assert first.modules == second.modules
    assert [m.reads for m in first.modules] == [m.reads for m in second.modules]


def test_the_context_is_added_to_the_input():
    """h^c = h + M(c) by hand, for module 1 of R1, whose context is the image."""
    cut_network, variables = make("R1")
    module = cut_network.modules[1]
    assert module.reads == ("features0", "images")
    h = jax.random.normal(jax.random.key(3), (8, 8, 8, 16))
    x, _, _ = module.apply(variables[module.name], [h, IMAGES], train=False)
    own = of_block(variables[module.name], "context0")
    np.testing.assert_allclose(x, h + module.contexts[0].apply(own, IMAGES, h, train=False), rtol=1e-5, atol=1e-6)


def test_logits_equal_those_of_the_reference_form_in_evaluation_mode():
    cut_network, variables = make("R2E")
    outputs = jax.jit(partial(cut_network.losses, train=False))(variables, IMAGES, LABELS)
    np.testing.assert_allclose(outputs.logits, jax.jit(cut_network.logits)(variables, IMAGES), rtol=1e-5, atol=1e-5)
    jax.tree.map(
        np.testing.assert_array_equal,
        outputs.batch_stats,
        {name: part["batch_stats"] for name, part in variables.items()},
    )


def test_named_boundaries():
    cut_network, _ = make("R0", modules=None, boundaries=("stem", "stage2/0"))
    assert [module.names for module in cut_network.modules] == [
        ("stem",),
        ("stage1/0", "stage2/0"),
        ("stage3/0", "head"),
    ]
    with pytest.raises(ValueError, match=r"4 modules, but 2 boundaries \(stem, stage2/0\), which make 3"):
        cut(NETWORK, 4, classes=10, boundaries=("stem", "stage2/0"))
    with pytest.raises(ValueError, match="unknown rule for boundaries 'balance': use equal"):
        cut(NETWORK, 4, classes=10, boundaries="balance")
    with pytest.raises(ValueError, match="the number of modules is missing"):
        cut(NETWORK, classes=10)
