"""Computation in bfloat16, with parameters, statistics, optimizer and losses in float32."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from kd_local.contract import subtree
from kd_local.distill import BlockKD, Distillation, Teacher
from kd_local.local import ContSup, EndToEnd, cut
from kd_local.models import resnet
from kd_local.training import train
from tests.support import tiny

WIDTHS = (4, 4, 8, 8)
SHAPE = (8, 8, 1)
OPTIMIZER = optax.sgd(0.05, momentum=0.9)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data():
    return tiny.data(48, 100)


@pytest.fixture(scope="module")
def teacher(data):
    method = EndToEnd(resnet(8, classes=4, widths=WIDTHS), OPTIMIZER)
    result = train(method, data, epochs=6, batch_size=16)
    assert result.records[-1].test.accuracy > 0.9
    return jax.device_get(method.network_variables(result.state))


def method(name, dtype, variables):
    network = resnet(8, classes=4, widths=WIDTHS, dtype=dtype)
    if name == "contsup":
        return ContSup(cut(network, 2, classes=4, context="R1E", dtype=dtype), OPTIMIZER)
    objective = BlockKD(alpha=1.0, beta=0.1, gamma=0.1)
    return Distillation(network, (Teacher(network, variables),), objective, OPTIMIZER)


@pytest.fixture(params=["contsup", pytest.param("block_kd", marks=pytest.mark.exhaustive)], scope="module")
def half(request, teacher):
    return request.param, method(request.param, jnp.bfloat16, teacher)


@pytest.mark.exhaustive
def test_bfloat16_learns_like_float32(half, data, teacher):
    name, low = half
    results = [train(each, data, epochs=6, batch_size=16) for each in (low, method(name, jnp.float32, teacher))]
    ours, plain = (result.records[-1].test.accuracy for result in results)
    assert plain > 0.85
    assert ours == pytest.approx(plain, abs=0.1)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(results[0].state), jax.tree.leaves(results[1].state), strict=True
    ):
        assert a.dtype == b.dtype
        assert a.dtype in (jnp.float32, jnp.int32), jax.tree_util.keystr(path)
    different = jax.tree.map(lambda a, b: bool((a != b).any()), results[0].state, results[1].state)
    assert any(jax.tree.leaves(different))


def each_program(low):
    """Yields each program with the shapes of its arguments; its tensors are written by the programs before it."""
    state = jax.eval_shape(low.init, KEY, jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32))
    there = {
        "images": jax.ShapeDtypeStruct((8, *SHAPE), jnp.float32),
        "labels": jax.ShapeDtypeStruct((8,), jnp.int32),
    }
    for program in low.programs():
        read = tuple(there[name] for name in program.reads)
        frozen = tuple(subtree(state, path) for path in program.frozen)
        constants = jax.ShapeDtypeStruct((len(program.constants),), jnp.float32)
        arguments = (state[program.name], frozen, read, KEY, constants)
        own, written, metrics = jax.eval_shape(program.function, *arguments)
        there |= dict(zip(program.writes, written, strict=True))
        yield program, arguments, own, written, metrics


@pytest.mark.exhaustive
def test_tensors_between_programs_are_bfloat16_and_the_state_is_float32(half):
    name, low = half
    handed = {}
    for program, arguments, own, written, metrics in each_program(low):
        assert jax.tree.map(lambda x: x.dtype, own) == jax.tree.map(lambda x: x.dtype, arguments[0])
        assert {x.dtype for x in jax.tree.leaves(own)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
        assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}
        handed |= dict(zip(program.writes, written, strict=True))
    assert bool(handed) == (name == "contsup")
    for tensor in handed.values():
        assert tensor.dtype == jnp.bfloat16


def equations(jaxpr):
    """All operations except those in loops, where a CPU sums filter gradients in float32."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            continue
        yield equation
        for sub in jaxprs_in_params(equation.params):
            yield from equations(sub)


@pytest.mark.exhaustive
def test_losses_and_sums_are_float32_and_convolutions_are_bfloat16(half):
    _, low = half
    for program, arguments, *_ in each_program(low):
        seen = {}
        for equation in equations(jax.make_jaxpr(program.function)(*arguments).jaxpr):
            for variable in equation.invars:
                seen.setdefault(equation.primitive.name, set()).add(getattr(variable.aval, "dtype", None))
        assert seen["conv_general_dilated"] == {jnp.dtype("bfloat16")}
        for primitive in ("exp", "log", "rsqrt"):
            assert seen[primitive] == {jnp.dtype("float32")}, primitive
