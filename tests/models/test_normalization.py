import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.batch_division import normalised_per_device
from kd_local.models.normalization import BatchNorm
from kd_local.parallel import device_mesh, over_the_batch


def run(module, variables, x, weights):
    def loss(params, x):
        y, updated = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return (y.astype(weights.dtype) * weights).sum(), (y, updated["batch_stats"])

    (_, (y, stats)), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(variables["params"], x)
    return y, stats, gradients


def example(dtype, shape=(6, 5, 7, 3)):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(2.0, 3.0, shape), dtype)
    draw = lambda low, high: jnp.asarray(random.uniform(low, high, shape[-1]), _wide(dtype))
    variables = {
        "params": {"scale": draw(0.5, 2), "bias": draw(-1, 1)},
        "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
    }
    return x, variables, jnp.asarray(random.normal(size=shape), _wide(dtype))


def _wide(dtype):
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 2e-5), ("bfloat16", 3e-2)])
@jax.numpy_dtype_promotion("standard")  # Flax's BatchNorm mixes dtypes.
def test_values_statistics_and_gradients_equal_those_of_flax(dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        x, variables, weights = example(jnp.dtype(dtype))
        theirs = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=x.dtype)
        ours = lambda: None
        ours.apply = lambda v, x, mutable: BatchNorm().apply(v, x, train=True, mutable=mutable)
        expected, found = run(theirs, variables, x, weights), run(ours, variables, x, weights)
        assert found[0].dtype == x.dtype
        # Flax's running variance uses the biased estimate, ours, as PyTorch's, the unbiased one.
        count, old, moved = x.size // x.shape[-1], variables["batch_stats"]["var"], expected[1]["var"]
        expected[1]["var"] = 0.9 * old + (moved - 0.9 * old) * (count / (count - 1))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())
        frozen = nn.BatchNorm(use_running_average=True, epsilon=1e-5, dtype=x.dtype)
        a, b = BatchNorm().apply(variables, x, train=False), frozen.apply(variables, x)
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance)


def test_a_batch_over_eight_devices_has_one_mean():
    x, variables, _ = example(jnp.float32, (16, 4, 4, 3))
    module = lambda v, x: BatchNorm().apply(v, x, train=True, mutable=["batch_stats"])
    y, updated = jax.jit(module)(variables, x)
    there = jax.device_put(x, over_the_batch(device_mesh(8), 16))
    y8, updated8 = jax.jit(module)(variables, there)
    np.testing.assert_allclose(y, y8, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), updated, updated8)


@jax.numpy_dtype_promotion("standard")
def test_slices_of_a_batch_are_normalised_one_by_one():
    with jax.enable_x64(True):
        x, variables, weights = example(jnp.float64, (6, 5, 7, 3))

        class Parts:
            apply = staticmethod(lambda v, x, mutable: BatchNorm().apply(v, x, train=True, mutable=mutable))

        with normalised_per_device(3):
            y, stats, gradients = run(Parts, variables, x, weights)
        each = [run(Parts, variables, x[i : i + 2], weights[i : i + 2]) for i in (0, 2, 4)]
        close = lambda a, b: jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), a, b)
        close(y, jnp.concatenate([part[0] for part in each]))
        close(stats, jax.tree.map(lambda *parts: sum(parts) / 3, *[part[1] for part in each]))
        close(gradients[0], jax.tree.map(lambda *parts: sum(parts), *[part[2][0] for part in each]))
        close(gradients[1], jnp.concatenate([part[2][1] for part in each]))


def test_only_the_input_is_stored_for_the_backward_pass():
    x, variables, _ = example(jnp.float32)
    apply = lambda x: BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])[0]
    _, pull_back = jax.vjp(apply, x)
    large = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.size >= x.size]
    assert len(large) == 1
