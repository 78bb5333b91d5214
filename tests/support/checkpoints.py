"""Checkpoints of a small tree: saved, restored and compared."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from kd_local.training.checkpoints import Checkpoints


def files_of(folder: Path) -> list[str]:
    """The paths of all files below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def example_tree(seed: int = 0) -> PyTree:
    """Parameters of two dtypes, and the state of an optimizer with empty parts."""
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "stage1/0": {"kernel": jax.random.normal(keys[0], (3, 3, 4, 8))},
        "head": {"bias": jax.random.normal(keys[1], (8,)).astype(jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    return {
        "params": params,
        "batch_stats": {},
        "opt_state": optimizer.init(params),
        "step": jnp.asarray(seed, jnp.int32),
    }


def assert_same_bits(tree: PyTree, expected: PyTree) -> None:
    assert str(jax.tree.structure(tree)) == str(jax.tree.structure(expected))
    for leaf, value in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == value.dtype and leaf.shape == value.shape
        assert np.asarray(leaf).tobytes() == np.asarray(value).tobytes()


def save_all(directory: Path, *steps: int, keep: int = 3) -> None:
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, example_tree(step))


def restore(directory: Path) -> tuple[int | None, list[str]]:
    """The step restored, after its tree was compared, and the reports."""
    reports: list[str] = []
    with Checkpoints(directory, report=reports.append) as checkpoints:
        restored = checkpoints.restore_latest(example_tree())
        assert checkpoints.last_good() == (restored and restored[0])
    if restored is None:
        return None, reports
    assert_same_bits(restored[1], example_tree(restored[0]))
    return restored[0], reports
