"""Reads checkpoints of earlier versions, which have arrays that this version does not use."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree


def with_step_count(like: PyTree, saved: PyTree) -> PyTree:
    """`like` with the array `state/student/step` if the saved tree has it and `like` does not.

    Before version 0.1.0 the state of a distillation run counted its steps. The training loop does so now.
    """
    part, saved_part = _student(like), _student(saved)
    if "step" in part or "step" not in saved_part:
        return like
    sharding = jax.tree.leaves(part)[0].sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
    return {**like, "state": {**like["state"], "student": {**part, "step": count}}}


def without_step_count(tree: PyTree, like: PyTree) -> PyTree:
    """A restored tree without `state/student/step` if `like` does not have it."""
    part = _student(tree)
    if "step" in _student(like) or "step" not in part:
        return tree
    others = {name: value for name, value in part.items() if name != "step"}
    return {**tree, "state": {**tree["state"], "student": others}}


def _student(tree: Any) -> dict[str, Any]:
    state = tree.get("state") if isinstance(tree, dict) else None
    part = state.get("student") if isinstance(state, dict) else None
    return part if isinstance(part, dict) else {}
