"""Counts the activations that reverse-mode differentiation saves between forward and backward pass, in bytes.

For frameworks that run operations one by one, memory is usually counted in this way, as in the code of the ContSup
authors: without parameters, gradients, optimizer state and temporary memory. A compiler may save less, or need more;
`footprint` has the memory of executables.

The saved activations are found in the traced code of a gradient. Operations of the backward pass have `transpose` in
their name stacks. Their inputs that come from other operations are saved.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jaxtyping import Array

from kd_local.contract import Method
from kd_local.costs import tree_bytes
from kd_local.memory.footprint import plan_for
from kd_local.networks import Network, apply_block
from kd_local.parallel import device_mesh

Objective = Callable[..., Array]

_LINEAR = ("conv_general_dilated", "dot_general")


def saved_bytes(objective: Objective, variables: Mapping[str, Any], *tensors: Any) -> int:
    """Bytes that the gradient of an objective with respect to parameters saves, each array counted once.

    Parameters, statistics and arrays computed only from them do not count. `tensors` count if they are saved, such as
    the input of a module. Nothing is computed.

    Args:
        objective: `(variables, *tensors)` to a scalar.
        variables: `{"params": ..., "batch_stats": ...}`, pytrees of arrays or of `jax.ShapeDtypeStruct`.
        tensors: arrays or `jax.ShapeDtypeStruct`.
    """
    jaxpr = _traced(partial(_gradient, objective))(dict(variables), *tensors).jaxpr
    return _size(_saved(jaxpr, jaxpr.invars[len(jax.tree.leaves(dict(variables))) :]))


def saved_activations(method: Method, shape: tuple[int, int, int], batch: int) -> dict[str, int]:
    """Bytes that the gradient in each program of a method saves, by the program's name.

    >>> import optax
    >>> from kd_local.local import ContSup, EndToEnd, cut
    >>> from kd_local.models import create
    >>> network = create("resnet8", classes=10)
    >>> local = ContSup(cut(network, modules=2, classes=10), optax.sgd(0.1))
    >>> whole = saved_activations(EndToEnd(network, optax.sgd(0.1)), (32, 32, 3), 8)
    >>> max(saved_activations(local, (32, 32, 3), 8).values()) < max(whole.values())
    True

    If programs run one after another, the largest value is the number of bytes saved at the same time. Arrays are
    counted as in `saved_bytes`; the state and constants that a program reads do not count. A program without a gradient
    has the value 0.

    Args:
        method: the method.
        shape: height, width and channels of the images (float32).
        batch: images of a step.

    Raises:
        ValueError: fewer than one image.
    """
    known: dict[Hashable, int] = {}
    saved = {}
    for call in plan_for(method, shape, batch, device_mesh()).calls:
        if call.signature not in known:
            jaxpr = _traced(call.piece.run)(*call.arguments).jaxpr
            own, frozen, *_, constants = call.arguments
            first, end = len(jax.tree.leaves((own, frozen))), len(jaxpr.invars) - len(jax.tree.leaves(constants))
            known[call.signature] = _size(_saved(jaxpr, jaxpr.invars[first:end]))
        saved[call.piece.name] = known[call.signature]
    return saved


def own_activations(network: Network, shape: tuple[int, int, int], batch: int) -> dict[str, int]:
    """The least bytes that each block's gradient needs besides the block's input, by the block's name.

    These bytes are the saved results of the block's convolutions and matrix products. The other saved activations can
    be recomputed from these results or from the input with less work.

    Args:
        network: the network with the blocks.
        shape: height, width and channels of the images (float32).
        batch: images of a step.
    """
    x: Any = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    own: dict[str, int] = {}
    known: dict[Hashable, int] = {}
    for name, block in network:
        variables = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), x)

        def objective(variables: Mapping[str, Any], x: Array, block: Any = block) -> Array:
            return apply_block(block, variables, x, train=True)[0].astype(jnp.float32).sum()

        like = (block, x.shape, x.dtype)
        if like not in known:
            jaxpr = _traced(partial(_gradient, objective))(variables, x).jaxpr
            known[like] = _size(_sources(jaxpr, _saved(jaxpr, jaxpr.invars[-1:])))
        own[name] = known[like]
        x = jax.eval_shape(partial(apply_block, block, train=False), variables, x)[0]
    return own


def _traced(function: Callable[..., Any]) -> Callable[..., ClosedJaxpr]:
    """`jax.make_jaxpr` with the operations of jitted functions, such as a block's, in place of calls of them."""

    def trace(*arguments: Any) -> ClosedJaxpr:
        with jax.disable_jit():
            return jax.make_jaxpr(function)(*arguments)

    return trace


def _gradient(objective: Objective, variables: Mapping[str, Any], *tensors: Any) -> Any:
    def of_params(params: Any) -> Array:
        return objective({**variables, "params": params}, *tensors)

    return jax.grad(of_params)(variables.get("params", {}))


def _saved(jaxpr: Jaxpr, tensors: Sequence[Var]) -> set[Var]:
    """The variables that depend on these tensors and that the backward pass reads.

    Others are left out, such as the zeros in the gradient of a ReLU.
    """
    there, read = set(tensors), set()
    for equation in jaxpr.eqns:
        variables = _read(equation)
        if "transpose(" in str(equation.source_info.name_stack):
            read.update(variables)
        elif not there.isdisjoint(variables):
            there.update(equation.outvars)
    return read & there


def _sources(jaxpr: Jaxpr, wanted: set[Var]) -> set[Var]:
    """The nearest results of convolutions and matrix products from which these variables are computed."""
    by = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    found: set[Var] = set()
    seen: set[Var] = set()
    left = set(wanted)
    while left:
        variable = left.pop()
        seen.add(variable)
        if variable not in by:
            continue
        if _multiplies(by[variable]):
            found.add(variable)
        else:
            left.update(_read(by[variable]) - seen)
    return found


def _multiplies(equation: JaxprEqn) -> bool:
    return equation.primitive.name in _LINEAR or any(
        _multiplies(inner) for jaxpr in _inside(tuple(equation.params.values())) for inner in jaxpr.eqns
    )


def _inside(value: Any) -> Iterator[Jaxpr]:
    """All jaxprs among the parameters of an equation."""
    if isinstance(value, Jaxpr | ClosedJaxpr):
        yield value if isinstance(value, Jaxpr) else value.jaxpr
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)


def _read(equation: JaxprEqn) -> set[Var]:
    return {variable for variable in equation.invars if isinstance(variable, Var)}


def _size(variables: set[Var]) -> int:
    return tree_bytes([variable.aval for variable in variables])
