"""What reverse-mode differentiation saves between forward and backward pass: the bytes of activations alone.

This is how memory is mostly counted for frameworks that run each operation as it comes, as in the ContSup authors'
code: parameters, gradients, optimizer and temporary memory are left out. A compiler may save less than this, or need
more on the way; what an executable needs is what `footprint` tells.

What is saved is read off the traced code of a gradient: operations of the backward pass stand under `transpose` in
their name stacks, and what they read of the others was saved for them.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jaxtyping import Array

from kd_local.contract import Method
from kd_local.memory.footprint import plan_for
from kd_local.networks import Network, apply_block
from kd_local.parallel import device_mesh
from kd_local.sizes import tree_bytes

Objective = Callable[..., Array]

_LINEAR = ("conv_general_dilated", "dot_general")


def saved_bytes(objective: Objective, variables: Mapping[str, Any], *tensors: Any) -> int:
    """The bytes that the gradient of an objective with respect to parameters saves, each array counted once.

    Parameters and statistics do not count, nor does what follows from them alone. Tensors do where they are saved, as a
    module's input is. Nothing is computed.

    Args:
        objective: `(variables, *tensors)` to a scalar.
        variables: `{"params": ..., "batch_stats": ...}`, pytrees of arrays or of `jax.ShapeDtypeStruct`.
        tensors: arrays or `jax.ShapeDtypeStruct`.
    """
    jaxpr = jax.make_jaxpr(partial(_gradient, objective))(dict(variables), *tensors).jaxpr
    return _size(_saved(jaxpr, jaxpr.invars[len(jax.tree.leaves(dict(variables))) :]))


def saved_activations(method: Method, shape: tuple[int, int, int], batch: int) -> dict[str, int]:
    """The bytes that the gradient in each program of a method saves, by the program's name: where programs run one
    after the other, the largest of them is what is saved at once.

    Counted as in `saved_bytes`: what a program reads of the state does not count, nor do the constants handed to it. A
    program without a gradient saves nothing.

    Args:
        method: any.
        shape: height, width and channels of the images (float32).
        batch: images of a step.

    Raises:
        ValueError: fewer than one image.
    """
    known: dict[Hashable, int] = {}
    saved = {}
    for call in plan_for(method, shape, batch, device_mesh()).calls:
        if call.signature not in known:
            jaxpr = jax.make_jaxpr(call.piece.run)(*call.arguments).jaxpr
            own, frozen, *_, constants = call.arguments
            first, end = len(jax.tree.leaves((own, frozen))), len(jaxpr.invars) - len(jax.tree.leaves(constants))
            known[call.signature] = _size(_saved(jaxpr, jaxpr.invars[first:end]))
        saved[call.piece.name] = known[call.signature]
    return saved


def own_activations(network: Network, shape: tuple[int, int, int], batch: int) -> dict[str, int]:
    """The bytes that each block's gradient cannot do without, besides the block's input, by the block's name.

    Of what the gradient saves, only what convolutions and matrix products inside the block gave: whatever else it saves
    follows from that, or from the input, by less work.

    Args:
        network: whose blocks.
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
            jaxpr = jax.make_jaxpr(partial(_gradient, objective))(variables, x).jaxpr
            known[like] = _size(_sources(jaxpr, _saved(jaxpr, jaxpr.invars[-1:])))
        own[name] = known[like]
        x = jax.eval_shape(partial(apply_block, block, train=False), variables, x)[0]
    return own


def _gradient(objective: Objective, variables: Mapping[str, Any], *tensors: Any) -> Any:
    def of_params(params: Any) -> Array:
        return objective({**variables, "params": params}, *tensors)

    return jax.grad(of_params)(variables.get("params", {}))


def _saved(jaxpr: Jaxpr, tensors: Sequence[Var]) -> set[Var]:
    """What the backward pass reads of these tensors and of what the forward pass computes from them.

    What does not depend on them is left out: the zeros of a ReLU's gradient, for one.
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
    """The results of convolutions and matrix products that these follow from without any other."""
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
    """Every jaxpr among an equation's parameters."""
    if isinstance(value, Jaxpr | ClosedJaxpr):
        yield value if isinstance(value, Jaxpr) else value.jaxpr
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)


def _read(equation: JaxprEqn) -> set[Var]:
    return {variable for variable in equation.invars if isinstance(variable, Var)}


def _size(variables: set[Var]) -> int:
    return tree_bytes([variable.aval for variable in variables])
