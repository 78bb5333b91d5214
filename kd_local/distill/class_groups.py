"""Probabilities of a group of classes, and within it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def of_group(
    log_p: Float[Array, "batch classes"], group: Bool[Array, "batch classes"]
) -> tuple[Float[Array, "batch 1"], Float[Array, "batch classes"]]:
    """`(log mass, log shares)`: the probability of a group, and of each class of it given the group, as logarithms.

    The shares of classes outside of the group are a logarithm of 0, so that a divergence of two such arrays, see
    `kd_local.distill.numerics.divergence`, is that within the group. A group has one class or more in each row.
    """
    log_mass = jax.nn.logsumexp(log_p, axis=-1, keepdims=True, where=group)
    return log_mass, jnp.where(group, log_p - log_mass, 0)


def not_the_label(labels: Int[Array, " batch"], classes: int) -> Bool[Array, "batch classes"]:
    """True for all classes but the label's."""
    return labels[:, None] != jnp.arange(classes, dtype=labels.dtype)[None, :]


def label_and_others(
    log_p: Float[Array, "batch classes"], others: Bool[Array, "batch classes"]
) -> tuple[Float[Array, "batch 2"], Float[Array, "batch classes"]]:
    """`(log masses, log shares)`: of one class and of all others together, and of each other class given the others.

    Args:
        log_p: logarithms of probabilities.
        others: False for one class of each row.
    """
    log_others, among = of_group(log_p, others)
    log_one = jnp.where(others, 0, log_p).sum(axis=-1, keepdims=True)
    return jnp.concatenate([log_one, log_others], axis=-1), among


def check_two_classes(logits: Float[Array, "batch classes"], name: str) -> None:
    """Checks that there are two classes or more.

    Raises:
        ValueError: there is one class; `name` is the loss that compares a class with the others.
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"1 class: {name} compares a label's class with the others, so use 2 classes or more, or kd")
