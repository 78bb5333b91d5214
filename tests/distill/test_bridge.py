"""Bridges: shapes, parameters, and the transposed convolution by its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.bridge import Bridge, TransposedConv

X = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))


def test_a_transposed_convolution_adds_the_kernel_at_every_second_place():
    layer = TransposedConv(5)
    variables = layer.init(jax.random.key(1), X)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    expected = np.zeros((2, 4 * 2 + 2, 6 * 2 + 2, 5))
    for i in range(4):
        for j in range(6):
            expected[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("nc,hwck->nhwk", X[:, i, j], kernel)
    np.testing.assert_allclose(layer.apply(variables, X), expected[:, 1:-1, 1:-1] + bias, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "biased"),
    [((4, 6), (3, 3, 3, 7), False), ((2, 3), (3, 3, 3, 7), True), ((8, 12), (4, 4, 3, 7), True)],
)
def test_the_convolution_depends_on_the_sizes(size, kernel, biased):
    bridge = Bridge((*size, 7))
    found, variables = bridge.init_with_output(jax.random.key(1), X, train=True)
    assert found.shape == (2, *size, 7)
    assert variables["params"]["conv"]["kernel"].shape == kernel
    assert ("bias" in variables["params"]["conv"]) == biased


@pytest.mark.long
def test_kernels_start_with_variance_two_over_fan_out():
    x = jnp.ones((1, 4, 4, 40))
    for size, fan_out in ((4, 9 * 80), (2, 9 * 80), (8, 16 * 40)):
        params = Bridge((size, size, 80)).init(jax.random.key(1), x, train=False)["params"]
        np.testing.assert_allclose(params["conv"]["kernel"].std(), np.sqrt(2 / fan_out), rtol=0.02)


def test_leaky_relu_only_before_stages_that_expect_a_relu():
    plain, leaky = (
        Bridge((4, 6, 7), relu=relu).init_with_output(jax.random.key(1), X, train=True)[0] for relu in (False, True)
    )
    np.testing.assert_allclose(leaky, jnp.where(plain > 0, plain, 0.1 * plain), rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 2), (16, 24), (4, 3)])
def test_other_ratios_are_refused(size):
    with pytest.raises(
        ValueError, match=rf"no bridge from maps of 4x6 to {size[0]}x{size[1]}: expected equal sizes or"
    ):
        Bridge((*size, 7)).init(jax.random.key(1), X, train=False)
