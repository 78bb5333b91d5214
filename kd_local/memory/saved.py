"""What reverse-mode differentiation saves between forward and backward pass, the bytes of these activations alone.

This is how memory is mostly counted for a framework that runs each operation as it comes: parameters, gradients,
optimizer and temporary memory left out. A compiler is free to save less than this, or to need more on the way; what an
executable needs is what `footprint` tells.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd_local.contract import Method
from kd_local.local import ContSup, EndToEnd
from kd_local.local.losses import softmax
from kd_local.memory.naive import SummedLosses
from kd_local.memory.naive import objective as sum_of_losses


def saved_bytes(objective: Callable[..., Array], params: Any, *tensors: Any) -> int:
    """The bytes that the gradient of an objective with respect to parameters saves, each array counted once.

    Parameters do not count; tensors do where they are saved, such as a module's input. Nothing is computed.

    Args:
        objective: `(params, *tensors)` to a scalar.
        params: a pytree of arrays or `jax.ShapeDtypeStruct`.
        tensors: arrays or `jax.ShapeDtypeStruct`, which share no memory.
    """

    def saved(params: Any, *tensors: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(lambda params: objective(params, *tensors), params)[1])

    jaxpr = jax.make_jaxpr(saved)(params, *tensors).jaxpr
    given = set(jaxpr.invars[: len(jax.tree.leaves(params))])
    # Constants of the program stand in it as literals; they are not saved by a step.
    variables = {variable for variable in jaxpr.outvars if isinstance(variable, jax.extend.core.Var)} - given
    return sum(variable.aval.size * variable.aval.dtype.itemsize for variable in variables)
