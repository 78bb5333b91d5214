import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop.layouts import Layer, conv_norm, names, read_layers, refuse_others, write_layers
from kd_local.models.layers import ConvNorm

LAYERS = (*conv_norm("conv", "bn", ("first",)), Layer("fc", ("last", "dense"), "linear"))
SHAPES = {
    "params": {
        "first": {
            "conv": {"kernel": jax.ShapeDtypeStruct((1, 2, 3, 4), jnp.float32)},
            "norm": {name: jax.ShapeDtypeStruct((4,), jnp.float32) for name in ("scale", "bias")},
        },
        "last": {"dense": {"kernel": jax.ShapeDtypeStruct((4, 5), jnp.float32)}},
    },
    "batch_stats": {
        "first": {"norm": {name: jax.ShapeDtypeStruct((4,), jnp.float32) for name in ("mean", "var")}},
        "last": {},
    },
}
ARRAYS = {
    "conv.weight": np.arange(24.0, dtype=np.float32).reshape(4, 3, 1, 2),
    "bn.weight": np.full(4, 1.0, np.float32),
    "bn.bias": np.full(4, 2.0, np.float32),
    "bn.running_mean": np.full(4, 3.0, np.float32),
    "bn.running_var": np.full(4, 4.0, np.float32),
    "fc.weight": np.arange(20.0, dtype=np.float32).reshape(5, 4),
}


def test_layouts_and_names():
    variables = read_layers(LAYERS, ARRAYS, SHAPES)
    assert jax.tree.map(lambda x: x.shape, variables) == jax.tree.map(lambda x: x.shape, SHAPES)
    kernel = variables["params"]["first"]["conv"]["kernel"]
    dense = variables["params"]["last"]["dense"]["kernel"]
    for h, w, i, o in np.ndindex(kernel.shape):
        assert kernel[h, w, i, o] == ARRAYS["conv.weight"][o, i, h, w]
    for i, o in np.ndindex(dense.shape):
        assert dense[i, o] == ARRAYS["fc.weight"][o, i]
    norm = {**variables["params"]["first"]["norm"], **variables["batch_stats"]["first"]["norm"]}
    assert {name: x[0] for name, x in norm.items()} == {"scale": 1, "bias": 2, "mean": 3, "var": 4}


def test_writing_is_the_inverse_of_reading():
    back = write_layers(LAYERS, read_layers(LAYERS, ARRAYS, SHAPES), SHAPES)
    assert tuple(back) == names(LAYERS, SHAPES) == tuple(ARRAYS)
    jax.tree.map(np.testing.assert_array_equal, back, ARRAYS)


def test_the_result_shares_no_memory():
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    variables = read_layers(LAYERS, arrays, SHAPES)
    arrays["bn.bias"][:] = 9
    assert variables["params"]["first"]["norm"]["bias"][0] == 2


def test_dtypes_are_kept_without_dtype():
    arrays = ARRAYS | {"bn.bias": np.zeros(4, np.float64), "bn.weight": np.zeros(4, jnp.bfloat16)}
    norm = read_layers(LAYERS, arrays, SHAPES)["params"]["first"]["norm"]
    assert (norm["bias"].dtype, norm["scale"].dtype) == (np.float64, jnp.bfloat16)
    half = read_layers(LAYERS, arrays, SHAPES, dtype=np.float16)
    assert {x.dtype for x in jax.tree.leaves(half)} == {np.dtype(np.float16)}


def test_a_layer_may_have_a_bias_or_not():
    layers = conv_norm("conv", "bn", ())
    for bias in (False, True):
        variables = ConvNorm(4, use_bias=bias).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)
        assert ("conv.bias" in write_layers(layers, variables, variables)) == bias


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fc.weight": None}, r"fc.weight is missing, expected in shape \(5, 4\): compare"),
        ({"fc.weight": np.zeros((4, 5))}, r"fc.weight has shape \(4, 5\), expected \(5, 4\) \(at params/last/dense/k"),
        ({"bn.bias": np.zeros(4, int)}, "bn.bias is int64, expected a floating dtype"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, text):
    arrays = {name: array for name, array in (ARRAYS | change).items() if array is not None}
    with pytest.raises(ValueError, match=text):
        read_layers(LAYERS, arrays, SHAPES)


def test_variables_that_do_not_fit_are_refused():
    variables = read_layers(LAYERS, ARRAYS, SHAPES)
    wrong = jax.tree.map(lambda x: x[..., :2], variables)
    with pytest.raises(ValueError, match=r"params/first/conv/kernel has shape \(1, 2, 3, 2\), expected \(1, 2, 3, 4\)"):
        write_layers(LAYERS, wrong, SHAPES)
    with pytest.raises(ValueError, match=r"batch_stats/first/norm/mean is missing, expected in shape \(4,\)"):
        write_layers(LAYERS, {"params": variables["params"]}, SHAPES)
    with pytest.raises(ValueError, match=r"opt_state/count of shape \(\) is unexpected"):
        write_layers(LAYERS, {**variables, "opt_state": {"count": np.zeros(())}}, SHAPES)


def test_a_description_must_cover_the_variables():
    with pytest.raises(ValueError, match="params/last/dense/kernel has no name in PyTorch"):
        names(LAYERS[:2], SHAPES)


def test_other_arrays_are_refused():
    refuse_others({"fc.weight": np.zeros(2), "bn.num_batches_tracked": np.zeros(())}, ["fc.weight"])
    with pytest.raises(ValueError, match=r"fc.bias of shape \(3,\) is unexpected, the network has no such tensor"):
        refuse_others({"fc.weight": np.zeros(2), "fc.bias": np.zeros(3)}, ["fc.weight"])
