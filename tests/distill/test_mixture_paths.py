"""Mixture paths, the choice among them, and terms that are computed only if they are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.chosen_term import if_chosen
from kd_local.distill.mixture_paths import mixture_paths, sample


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        (2, []),
        (3, ["001", "110"]),
        (4, ["0011", "0001", "1100", "1110"]),
        (5, ["00111", "00011", "00001", "11000", "11100", "11110"]),
    ],
)
def test_paths_change_the_network_once_between_the_stem_and_the_last_stage(stages, names):
    assert [path.name for path in mixture_paths(stages)] == names


def test_every_pair_of_paths_is_drawn_equally_often():
    drawn = np.asarray(jax.vmap(lambda key: sample(key, 2, 4))(jax.random.split(jax.random.key(0), 3000)))
    assert (drawn.sum(axis=1) == 2).all()
    pairs, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(pairs) == 6
    assert abs(counts - 500).max() < 100  # five standard deviations


def term(trained, fixed):
    loss = (trained["w"] * fixed["x"]).sum() ** 2
    return loss, {"twice": 2 * loss}, {"count": fixed["statistics"]["count"] + 1}


@pytest.mark.parametrize("chosen", [True, False])
def test_a_term_that_is_not_chosen_has_no_value_gradient_or_statistics(chosen):
    trained, fixed = (
        {"w": jnp.array([1.0, 2.0])},
        {"x": jnp.array([3.0, -1.0]), "statistics": {"count": jnp.array(4.0)}},
    )

    def loss(trained, fixed):
        value, metrics, statistics = if_chosen(term, jnp.array(chosen), trained, fixed)
        return 3 * value, (metrics, statistics)

    (value, (metrics, statistics)), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
        trained, fixed
    )
    assert loss(trained, fixed)[0] == value == (3.0 if chosen else 0)
    assert metrics["twice"] == (2.0 if chosen else 0)
    assert statistics["count"] == (5.0 if chosen else 4.0)
    np.testing.assert_allclose(gradients[0]["w"], [18.0, -6.0] if chosen else 0)
    assert not any(map(np.any, jax.tree.leaves(gradients[1])))  # `fixed` gets none
