"""A digest of a network's variables."""

import hashlib

import jax
from flax.traverse_util import flatten_dict

from kd_local.networks import Variables


def variables_digest(variables: Variables) -> str:
    """A digest of the names, dtypes, shapes and values of all variables."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten_dict(jax.device_get(dict(variables)), sep="/").items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape} ".encode() + leaf.tobytes())
    return digest.hexdigest()
