"""What reverse-mode differentiation saves between forward and backward pass: the bytes of activations alone.

This is how memory is mostly counted for frameworks that run each operation as it comes, as in the ContSup authors'
code: parameters, gradients, optimizer and temporary memory are left out. A compiler may save less than this, or need
more on the way; what an executable needs is what `footprint` tells.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Var
from jaxtyping import Array

from kd_local.contract import Method
from kd_local.local import ContSup, EndToEnd
from kd_local.local.losses import softmax
from kd_local.memory.naive import SummedLosses, by_module

Objective = Callable[..., Array]


def saved_bytes(objective: Objective, variables: Mapping[str, Any], *tensors: Any) -> int:
    """The bytes that the gradient of an objective with respect to parameters saves, each array counted once.

    Parameters and statistics do not count. Tensors do where they are saved, as a module's input is. Nothing is
    computed.

    Args:
        objective: `(variables, *tensors)` to a scalar.
        variables: `{"params": ..., "batch_stats": ...}`, pytrees of arrays or of `jax.ShapeDtypeStruct`.
        tensors: arrays or `jax.ShapeDtypeStruct`.
    """

    def saved(variables: Mapping[str, Any], *tensors: Any) -> list[Any]:
        def of_params(params: Any) -> Array:
            return objective({**variables, "params": params}, *tensors)

        return jax.tree.leaves(jax.vjp(of_params, variables["params"])[1])

    jaxpr = jax.make_jaxpr(saved)(dict(variables), *tensors).jaxpr
    given = jaxpr.invars[: len(jax.tree.leaves(dict(variables)))]
    found = {variable for variable in jaxpr.outvars if isinstance(variable, Var)}
    kept = (found & _dependent(jaxpr)).difference(given)
    return sum(variable.aval.size * variable.aval.dtype.itemsize for variable in kept)  # type: ignore[attr-defined]


def _dependent(jaxpr: Jaxpr) -> set[Var]:
    """What is computed from what is given: the zeros of a ReLU's gradient, for one, are not."""
    dependent = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(isinstance(variable, Var) and variable in dependent for variable in equation.invars):
            dependent.update(equation.outvars)
    return dependent


def saved_activations(method: Method, shape: tuple[int, int, int], batch: int) -> dict[str, int]:
    """What `saved_bytes` gives for each program of a method, by its name: where programs run one after the other, the
    largest of them is what is saved at once.

    Args:
        method: `EndToEnd`, `ContSup` or `SummedLosses`.
        shape: height, width and channels of the images (float32).
        batch: images of a step.

    Raises:
        ValueError: fewer than one image, or another method.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}: use 1 or more images")
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    state = jax.eval_shape(method.init, jax.eval_shape(lambda: jax.random.key(0)), images)
    if isinstance(method, ContSup):
        return _of_modules(method, state, images, labels)
    if isinstance(method, EndToEnd):
        objective = _end_to_end(method)
    elif isinstance(method, SummedLosses):
        objective = _summed(method)
    else:
        raise ValueError(
            f"what {type(method).__name__} saves is not known: use EndToEnd, ContSup or SummedLosses, or give its "
            "objective to saved_bytes"
        )
    (program,) = method.programs()
    part = state[program.name]
    variables = {key: part[key] for key in ("params", "batch_stats")}
    return {program.name: saved_bytes(objective, variables, images, labels)}


def _end_to_end(method: EndToEnd) -> Objective:
    def objective(variables: Mapping[str, Any], images: Array, labels: Array) -> Array:
        logits, _ = method.network.apply(variables, images, train=True, remat=method.remat)
        return softmax(logits, labels)["loss"]

    return objective


def _summed(method: SummedLosses) -> Objective:
    def objective(variables: Mapping[str, Any], images: Array, labels: Array) -> Array:
        losses = method.cut.losses(by_module(variables), images, labels).losses
        return jnp.stack(list(losses.values())).sum()

    return objective


def _of_modules(method: ContSup, state: Mapping[str, Any], images: Any, labels: Any) -> dict[str, int]:
    tensors: dict[str, Any] = {"images": images}
    known: dict[Any, int] = {}
    saved = {}
    for module in method.cut.modules:
        variables = {key: state[module.name][key] for key in ("params", "batch_stats")}
        read = [tensors[name] for name in module.reads]
        like = (module, tuple((tensor.shape, tensor.dtype) for tensor in read))
        if like not in known:

            def objective(variables: Mapping[str, Any], *given: Array, module: Any = module) -> Array:
                *read, labels = given
                return module.evaluate(variables, read, labels, train=True)[0]["loss"]

            known[like] = saved_bytes(objective, variables, *read, labels)
        saved[module.name] = known[like]

        def written(variables: Mapping[str, Any], read: Any, module: Any = module) -> Any:
            supply, output, _ = module.apply(variables, read, train=True)
            return module.hand_on(supply, output)

        tensors.update(zip(module.writes, jax.eval_shape(written, variables, read), strict=True))
    return saved
