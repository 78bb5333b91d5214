"""Functions that are compiled quickly give the results of `jax.jit`, also where another function calls them."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_local.quick_compilation import jit_quickly


@jit_quickly(static_argnums=(0,))
def normals(count, key):
    return jax.random.normal(key, (count, 3))


def test_the_results_are_those_of_jit_to_the_bit():
    key = jax.random.key(0)
    expected = jax.jit(lambda key: jax.random.normal(key, (5, 3)))(key)
    np.testing.assert_array_equal(normals(5, key), expected)
    np.testing.assert_array_equal(
        jax.jit(lambda key: normals(5, key))(key), expected
    )  # options are for outermost calls
    assert jax.eval_shape(lambda key: normals(5, key), key).shape == (5, 3)
    assert jax.grad(lambda scale: jnp.sum(scale * normals(2, key)))(1.0).shape == ()
