"""Rematerialisation keeps values and gradients and saves memory, on the CPU too, where `jax.checkpoint` does not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.local import ContSup, PixelScale, cut
from kd_local.local.contexts import Context, supply
from kd_local.rematerialization import add_dependence, rematerialize, rematerialize_in_turn
from tests.support import tiny

KEY = jax.random.key(3)
NETWORK = tiny.network(10)
PIXELS = PixelScale(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))


def layers(variables, x):
    """Five layers of the width of their input. Reverse-mode differentiation keeps the output of each."""
    for kernel in variables["kernels"]:
        x = jnp.sin(x @ kernel)
    return x, {"mean": x.mean(axis=0)}


def arguments(rows: int = 16, dtype: str = "float32"):
    kernels = [jax.random.normal(key, (8, 8), dtype) for key in jax.random.split(KEY, 5)]
    return {"kernels": kernels}, jax.random.normal(KEY, (rows, 8), dtype)


def temporary_bytes(function, *args) -> int:
    return jax.jit(jax.grad(function)).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_values_statistics_and_gradients_are_the_same():
    def loss(call, variables, x):
        y, statistics = call(variables, x)
        return (y * y).sum() + statistics["mean"].sum(), statistics

    plain, again = (
        jax.value_and_grad(lambda *a, call=call: loss(call, *a), argnums=(0, 1), has_aux=True)(*arguments())
        for call in (layers, rematerialize(layers))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, again)


def test_inner_arrays_are_not_kept():
    variables, x = arguments(1 << 14)

    def loss(call, depth):
        def apply(variables, x):
            for _ in range(depth):
                x = call(variables, x)[0]
            return (x * x).sum()

        return apply

    plain = temporary_bytes(loss(layers, 4), variables, x)
    again = temporary_bytes(loss(rematerialize(layers), 4), variables, x)
    checkpoint = temporary_bytes(loss(jax.checkpoint(layers), 4), variables, x)
    # Every fifth of twenty layers is kept, and five more during the computation of their gradient.
    assert again <= 0.75 * plain
    assert again <= checkpoint


@pytest.mark.long
def test_functions_in_turn_need_the_memory_of_one():
    variables, x = arguments(1 << 14)
    many = 6

    def loss(together):
        def apply(each, x):
            if together:
                return sum((layers(own, x)[0] ** 2).sum() for own in each)
            return sum((y**2).sum() for y, _ in rematerialize_in_turn(*[layers] * many)(each, x))

        return apply

    each = (variables,) * many
    assert temporary_bytes(loss(False), each, x) <= 0.5 * temporary_bytes(loss(True), each, x)
    plain, in_turn = (jax.grad(loss(together), argnums=(0, 1))(each, x[:32]) for together in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, in_turn)


def test_the_backward_pass_goes_from_the_last_to_the_first():
    variables, x = arguments()
    each = tuple({"kernels": [kernel * scale for kernel in variables["kernels"]]} for scale in (0.5, 1.0, 2.0))
    order = []

    def named(name):
        def function(variables, x):
            order.append(name)
            return layers(variables, x)

        return function

    functions = [named(name) for name in "abc"]

    def loss(call):
        return lambda each, x: sum((y**2).sum() for y, _ in call(each, x))

    def plain(each, x):
        return [layers(own, x) for own in each]

    in_turn = jax.grad(loss(rematerialize_in_turn(*functions)), argnums=(0, 1))(each, x)
    assert "".join(order) == "abccba"
    expected = jax.grad(loss(plain), argnums=(0, 1))(each, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), in_turn, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_add_dependence_returns_the_same_values(dtype):
    first = [jnp.full((3, 2), 7.0), jnp.float32(-2.0)]
    then = {"a": jax.random.normal(KEY, (5,), dtype), "b": jnp.ones((2, 2), dtype)}
    waited = jax.jit(add_dependence)(first, then)
    jax.tree.map(np.testing.assert_array_equal, waited, then)
    assert jax.tree.map(lambda x: x.dtype, waited) == jax.tree.map(lambda x: x.dtype, then)


def test_a_dependent_computation_is_repeated_in_the_compiled_program():
    def twice(x, y):
        return jnp.dot(x, y), jnp.dot(x, add_dependence(x @ y, y))

    shapes = [jax.ShapeDtypeStruct((256, 256), jnp.float32)] * 2
    text = jax.jit(twice).lower(*shapes).compile().as_text()
    assert sum(" dot(" in line and "f32[256,256]" in line for line in text.splitlines()) == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("image_encoder", ["full", "pooled"])
def test_context_networks_in_groups_of_channels(image_encoder):
    channels, at_once = 21, 8
    networks = Context.parse("R1E").networks(2, image_encoder=image_encoder)
    contexts = [jax.random.normal(KEY, (3, 8, 8, c)) for c in (3, 7)]
    like = jnp.zeros((3, 4, 4, channels))
    variables = [n.init(KEY, c, like, train=False) for n, c in zip(networks, contexts, strict=True)]
    params, stats = [v["params"] for v in variables], [v["batch_stats"] for v in variables]

    def loss(params, remat):
        own = [{"params": p, "batch_stats": s} for p, s in zip(params, stats, strict=True)]
        results = supply(networks, own, contexts, like, train=True, remat=at_once if remat else None)
        total = sum((y.sum(axis=(0, 1, 2)) @ jnp.arange(channels, dtype=y.dtype)) ** 2 for y, _ in results)
        return total, results

    plain, again = (
        jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(params, remat) for remat in (False, True)
    )
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    scale = max(float(abs(x).max()) for x in jax.tree.leaves(plain[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), plain[0][1], again[0][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * scale), plain[1], again[1])


@pytest.mark.exhaustive
@pytest.mark.parametrize("remat", [("blocks",), ("contexts",), ("head",), ("decoder",)])
def test_rematerialised_modules_have_the_same_losses_and_gradients(remat):
    with jax.enable_x64():
        images = jax.random.normal(KEY, (6, 8, 8, 3), jnp.float64)
        labels = jnp.arange(6, dtype=jnp.int32)

        def gradients(remat):
            options = {"context": "R1E", "decoder": PIXELS, "remat": remat, "channels_at_once": 1}
            cut_network = cut(NETWORK, 3, classes=10, **options)
            variables = jax.tree.map(
                lambda x: x.astype(jnp.float64), cut_network.init(KEY, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
            )

            def loss(params):
                merged = {n: {**variables[n], "params": p} for n, p in params.items()}
                outputs = cut_network.losses(merged, images, labels)
                return sum(outputs.losses.values()), outputs

            return jax.jit(jax.value_and_grad(loss, has_aux=True))({n: v["params"] for n, v in variables.items()})

        plain, again = gradients(()), gradients(remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), plain, again)


def test_names_in_remat_are_checked_and_ordered():
    with pytest.raises(ValueError, match=r"^unknown name in remat 'heads': use blocks, contexts, head or deco"):
        cut(NETWORK, 2, classes=10, remat=("heads",))
    with pytest.raises(ValueError, match=r"^remat has decoder, but there is none: leave it out, or give decoder="):
        cut(NETWORK, 2, classes=10, remat=("blocks", "decoder"))
    method = ContSup(cut(NETWORK, 2, classes=10, remat=("head", "blocks")), optax.sgd(0.1))
    assert {module.remat for module in method.cut_network.modules} == {("blocks", "head")}
