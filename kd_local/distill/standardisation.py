"""Logit standardisation: the student matches the relations between the teacher's logits, not their magnitude."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.numerics import root, widened
from kd_local.ranges import TEMPERATURE
from kd_local.shapes import check_arrays

EPSILON = 1e-7


def standardise(logits: Float[Array, "batch classes"]) -> Float[Array, "batch classes"]:
    """(logits - mean) / (std + 1e-7) for each sample, in float32 at least. Mean and unbiased std are over the classes.

    Reference: Sun et al., "Logit standardization in knowledge distillation" (CVPR 2024), algorithm 1.
    """
    check_arrays(logits=(logits, "float batch classes"))
    (logits,) = widened(logits)
    centred = logits - logits.mean(axis=-1, keepdims=True)
    variance = jnp.sum(centred * centred, axis=-1, keepdims=True) / max(logits.shape[-1] - 1, 1)
    return centred / (root(variance) + EPSILON)


def logits_to_compare(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    temperature: float,
    standardised: bool,
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
    """The logits of both in one dtype, float32 at least; standardised if `standardised`.

    Raises:
        ValueError: the two are not logits of the same images and classes, or the temperature is out of range.
    """
    TEMPERATURE.check("temperature", temperature)
    check_arrays(student=(student, "float batch classes"), target=(target, "float batch classes"))
    student, target = widened(student, target)
    return (standardise(student), standardise(target)) if standardised else (student, target)
