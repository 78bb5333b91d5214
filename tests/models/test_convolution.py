import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_local.models.convolution import Conv, conv2d

LOOP = "while"  # the loop over slices of the batch, in StableHLO and in HLO


def reference(x, kernel, *, stride=1, padding=None, groups=1):
    """The convolution with XLA's gradients."""
    pads = [size // 2 if padding is None else padding for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad) for pad in pads],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def operands(batch, size, channels, features, kernel_size, dtype, **options):
    """Images, filters, and a gradient of the output."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *size, channels))
    kernel = rng.normal(size=(kernel_size, kernel_size, channels // options.get("groups", 1), features))
    y = jax.eval_shape(lambda x, kernel: reference(x, kernel, **options), x, kernel)
    return tuple(jnp.asarray(a, dtype) for a in (x, kernel, rng.normal(size=y.shape)))


def gradients(function, **options):
    """The output, and the gradients of images and filters for a given gradient of the output."""

    @jax.jit
    def run(x, kernel, g):
        y, transpose = jax.vjp(lambda x, kernel: function(x, kernel, **options), x, kernel)
        return y, *transpose(g)

    return run


def relative_errors(*arrays, **options):
    ours = gradients(conv2d, **options)(*arrays)
    exact = (np.asarray(a, np.float64) for a in arrays)
    wanted = gradients(reference, **options)(*exact)
    assert {a.dtype for a in ours} == {arrays[0].dtype}
    return [
        float(np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b)))
        for a, b in zip(ours, wanted, strict=True)
    ]


@pytest.mark.usually(
    "1-2-33-size2-None",
    "3-1-19-size5-None",
    "3-1-5-size7-0",
    "3-2-33-size9-None",
    "3-1-5-size11-None",
    "5-3-5-size14-None",
)
@pytest.mark.parametrize(
    ("kernel_size", "stride", "batch", "size", "padding"),
    [
        (1, 1, 7, (8, 8), None),
        (1, 2, 1, (9, 9), None),
        (1, 2, 33, (8, 9), None),
        (1, 2, 5, (8, 8), 1),
        (3, 1, 1, (8, 8), None),
        (3, 1, 19, (8, 11), None),
        (3, 1, 32, (32, 32), None),
        (3, 1, 5, (8, 8), 0),
        (3, 2, 32, (8, 8), None),
        (3, 2, 33, (9, 8), None),
        (3, 1, 19, (2, 2), None),
        (3, 1, 5, (2, 1), None),
        (3, 2, 5, (2, 2), None),
        (3, 2, 5, (4, 4), None),
        (5, 3, 5, (4, 4), None),
    ],
)
def test_float64_equals_the_gradients_of_xla(kernel_size, stride, batch, size, padding):
    options = {"stride": stride, "padding": padding}
    with jax.enable_x64(True):
        arrays = operands(batch, size, 3, 5, kernel_size, jnp.float64, **options)
        errors = relative_errors(*arrays, **options)
    assert max(errors) < 1e-12


@pytest.mark.usually("3-1-size0-6-6-6", "3-2-size1-6-6-6", "3-1-size5-6-12-6", "1-1-size6-6-9-3")
@pytest.mark.parametrize(
    ("kernel_size", "stride", "size", "channels", "features", "groups"),
    [
        (3, 1, (8, 11), 6, 6, 6),
        (3, 2, (9, 8), 6, 6, 6),
        (3, 1, (1, 1), 6, 6, 6),
        (3, 2, (2, 2), 6, 6, 6),
        (5, 1, (8, 8), 4, 4, 4),
        (3, 1, (8, 8), 6, 12, 6),
        (1, 1, (8, 8), 6, 9, 3),
        (3, 2, (8, 8), 6, 4, 2),
        (3, 1, (2, 2), 6, 4, 2),
    ],
)
def test_groups_in_float64(kernel_size, stride, size, channels, features, groups):
    options = {"stride": stride, "groups": groups}
    with jax.enable_x64(True):
        arrays = operands(5, size, channels, features, kernel_size, jnp.float64, **options)
        errors = relative_errors(*arrays, **options)
    assert max(errors) < 1e-12


@pytest.mark.parametrize(("channels", "features"), [(6, 6), (12, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 1e-2)])
def test_groups_in_narrower_dtypes(channels, features, dtype, tolerance):
    with jax.enable_x64(True):
        arrays = operands(19, (12, 12), channels, features, 3, dtype, groups=6)
        assert max(relative_errors(*arrays, groups=6)) < tolerance


@pytest.mark.parametrize(("platform", "grouped"), [("cpu", 0), ("tpu", 3), ("cuda", 3)])
@pytest.mark.parametrize("channels", [6, 12])
def test_only_the_cpu_convolves_groups_one_by_one(platform, grouped, channels):
    traced = gradients(conv2d, groups=6).trace(*operands(8, (8, 8), channels, 6, 3, jnp.float32, groups=6))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(r"(?:feature|batch)_group_count = 6", text)) == grouped


def test_the_images_are_stored_once_for_the_backward_pass():
    x, kernel, _ = operands(8, (8, 8), 6, 6, 3, jnp.float32, groups=6)
    _, transpose = jax.vjp(lambda x, kernel: conv2d(x, kernel, groups=6), x, kernel)
    assert sum(leaf.size for leaf in jax.tree.leaves(transpose)) == x.size + kernel.size


@pytest.mark.parametrize(
    ("dtype", "stride", "tolerance"),
    [
        (jnp.float32, 1, 2e-6),
        (jnp.float32, 2, 2e-6),
        (jnp.bfloat16, 2, 1e-2),
        (jnp.float16, 1, 1e-3),
    ],
)
def test_narrower_dtypes_are_exact_up_to_their_rounding(dtype, stride, tolerance):
    with jax.enable_x64(True):
        for size in (12, 2):
            arrays = operands(19, (size, size), 4, 6, 3, dtype, stride=stride)
            assert max(relative_errors(*arrays, stride=stride)) < tolerance


@pytest.mark.parametrize(("platform", "in_slices"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_only_the_cpu_sums_over_slices(platform, in_slices):
    traced = gradients(conv2d).trace(*operands(64, (32, 32), 4, 4, 3, jnp.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert (LOOP in text) == in_slices
    if not in_slices:
        assert text.count("stablehlo.convolution") == 3


@pytest.mark.parametrize(
    ("platform", "size", "convolutions"), [("cpu", 4, 3), ("cpu", 2, 1), ("tpu", 2, 3), ("cuda", 2, 3)]
)
def test_only_the_cpu_multiplies_the_patches_of_images_smaller_than_the_filter(platform, size, convolutions):
    traced = gradients(conv2d).trace(*operands(8, (size, size), 4, 4, 3, jnp.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions


def test_convolutions_in_a_loop_have_the_layout_of_the_fast_routine_of_the_cpu():
    x, kernel, g = operands(64, (8, 8), 4, 6, 3, jnp.float32)
    run = gradients(conv2d)
    compiled = jax.jit(lambda x, kernels, g: jax.lax.map(lambda kernel: run(x, kernel, g), kernels))
    text = compiled.lower(x, jnp.stack([kernel] * 5), g).compile().as_text()
    convolutions = re.findall(r" convolution\(.*dim_labels=(\S+?)[, ]", text)
    assert len(convolutions) >= 3
    assert set(convolutions) == {"b01f_01io->b01f"}


def test_a_sharded_batch_has_the_same_results_and_moves_no_images():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("batch",))
    x, kernel, g = operands(64, (32, 32), 4, 6, 3, jnp.float32)
    wanted = gradients(conv2d)(x, kernel, g)
    x, g = jax.device_put((x, g), NamedSharding(mesh, PartitionSpec("batch")))
    kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    compiled = gradients(conv2d).lower(x, kernel, g).compile()
    for a, b in zip(compiled(x, kernel, g), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.max(np.abs(b)))
    text = compiled.as_text()
    assert LOOP in text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


@pytest.mark.parametrize(
    ("x", "kernel", "options", "message"),
    [
        ((8, 8, 3), (3, 3, 3, 4), {}, r"\(8, 8, 3\).*expected four axes each"),
        ((1, 3, 8, 8), (3, 3, 3, 4), {}, "images have 8 channels, filters expect 3"),
        ((1, 8, 8, 3), (3, 3, 3, 4), {"stride": 0}, "stride 0: expected an integer >= 1"),
        ((1, 8, 8, 3), (3, 3, 3, 4), {"padding": -1}, "padding -1: expected an integer >= 0"),
        (
            (1, 8, 8, 6),
            (3, 3, 2, 4),
            {"groups": 3},
            "groups is 3 for 6 channels and 4 features: .* the largest is 2;",
        ),
        ((1, 8, 8, 6), (3, 3, 2, 6), {"groups": 0}, "groups is 0 for 6 channels and 6 features: .* the largest is 6"),
        ((1, 8, 8, 6), (3, 3, 6, 6), {"groups": 3}, r"have 6 channels, filters expect 18: .* times 3 groups"),
        ((1, 2, 8, 3), (3, 3, 3, 4), {"padding": 0}, "images of 2x8 .* smaller than a 3x3 filter"),
    ],
)
def test_bad_arguments_are_refused(x, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        # Without the type check of the tests, which would raise first.
        inspect.unwrap(conv2d)(jnp.zeros(x), jnp.zeros(kernel), **options)


def test_images_and_filters_of_different_dtypes_are_refused():
    with pytest.raises(ValueError, match="images are bfloat16, filters float32: expected one"):
        conv2d(jnp.zeros((1, 8, 8, 3), jnp.bfloat16), jnp.zeros((3, 3, 3, 4), jnp.float32))


def init(module, x):
    return jax.jit(module.init_with_output)(jax.random.key(1), x)


def test_initialisation_and_bias_of_the_module():
    x = jnp.ones((2, 8, 8, 32), jnp.float32)
    y, variables = init(Conv(64, 3, 2, use_bias=True), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert y.shape == (2, 4, 4, 64)
    assert kernel.shape == (3, 3, 32, 64)
    # 18,432 draws: 3 % of the standard deviation are nearly six standard errors.
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.03)
    bound = 1 / np.sqrt(9 * 32)
    assert bound * 0.8 < np.max(np.abs(bias)) <= bound
    plain = np.asarray(conv2d(x, kernel, stride=2))
    np.testing.assert_allclose(y - plain, np.broadcast_to(bias, y.shape), atol=1e-5)


def test_module_with_groups():
    x = jnp.ones((2, 8, 8, 32), jnp.float32)
    _, variables = init(Conv(64, groups=32, use_bias=True), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (3, 3, 1, 64)
    assert 0.8 / 3 < np.max(np.abs(bias)) <= 1 / 3  # fan-in 9
    with pytest.raises(ValueError, match="groups is 3 for 32 channels and 64 features: .* the largest is 32; 1 lets"):
        Conv(64, groups=3).init(jax.random.key(0), x)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_module_computes_in_the_given_dtype(dtype):
    module = Conv(4, use_bias=True, dtype=dtype)
    y, variables = init(module, jnp.ones((2, 8, 8, 3), jnp.float32))
    assert y.dtype == (dtype or jnp.float32)
    assert variables["params"]["kernel"].dtype == jnp.float32


def test_module_computes_in_float64_for_float64_images_and_parameters():
    with jax.enable_x64(True):
        module = Conv(4, use_bias=True, param_dtype=jnp.float64)
        y, _ = init(module, jnp.ones((2, 8, 8, 3), jnp.float64))
    assert y.dtype == jnp.float64
