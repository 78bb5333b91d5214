"""Vision transformers alone, cut into modules, and as student and teacher of Block-KD."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import BlockKD, Distillation, Teacher
from kd_local.local import ContSup, PixelScale, cut
from kd_local.local.partition import equal_layers
from kd_local.models import create, resnet
from kd_local.models.vision_transformer import LayerNorm, attend, positions, vision_transformer
from kd_local.networks import Network, apply_block, of_block
from kd_local.parallel import compile_step
from kd_local.state import variables_of

PATCH, WIDTH, HEADS, CLASSES = 4, 12, 3, 5
TINY = vision_transformer(classes=CLASSES, width=WIDTH, heads=HEADS, depth=4, patch_size=PATCH)
FINER = vision_transformer(classes=CLASSES, width=16, heads=2, depth=4, patch_size=2)
RESNET = resnet(8, classes=CLASSES, widths=(4, 4, 6, 8))
LIKE = jax.ShapeDtypeStruct((6, 8, 8, 3), jnp.float32)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
# Equal blocks share one compilation.
run = partial(jax.jit, static_argnums=0, static_argnames="train")(apply_block)
PIXELS = PixelScale(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))


def varied(network: Network, seed: int, like: jax.ShapeDtypeStruct = LIKE, dtype: str = "float32") -> dict:
    """Random variables, without the zeros and ones of initialisation."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0), like)
    return jax.tree.map_with_path(
        lambda path, x: random.uniform(
            *((0.3, 1.0) if path[-1].key in ("scale", "var") else (-0.6, 0.6)), x.shape
        ).astype(dtype),
        shapes,
    )


def batch(size: int = 6) -> tuple[jax.Array, jax.Array]:
    images = np.random.default_rng(1).standard_normal((size, 8, 8, 3), np.float32)
    return jnp.asarray(images), jnp.arange(size, dtype=jnp.int32) % CLASSES


def block_parameters(width: int) -> int:
    attention = 4 * (width * width + width)  # query, key, value and output, with biases
    linear = (width * 4 * width + 4 * width) + (4 * width * width + width)
    return 2 * 2 * width + attention + linear  # two layer normalisations with scale and bias


# Ti: 147,648 + 12 * 444,864 + 384 + 193,000. S: 295,296 + 12 * 1,774,464 + 768 + 385,000. Touvron et al. (DeiT, arXiv
# 2012.12877) have the same with a class token and 197 learned positions: in total 5,717,416 and 22,050,664.
@pytest.mark.parametrize(
    ("name", "width", "parameters", "published"),
    [("vit_ti16", 192, 5_679_400, 5_717_416), ("vit_s16", 384, 21_974_632, 22_050_664)],
)
def test_numbers_of_parameters(name, width, parameters, published):
    network = create(name, classes=1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    assert variables["batch_stats"] == {}
    each = {
        block: sum(leaf.size for leaf in jax.tree.leaves(entries)) for block, entries in variables["params"].items()
    }
    assert each.pop("stem") == 16 * 16 * 3 * width + width
    assert each.pop("head") == 2 * width + width * 1000 + 1000
    assert len(each) == 12 and set(each.values()) == {block_parameters(width)}
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert counted == parameters == published - (1 + 197) * width


def test_blocks_are_in_four_stages_of_maps():
    network = create("vit_s16", classes=1000)
    stages = [f"stage{stage}/{index}" for stage in (1, 2, 3, 4) for index in (0, 1, 2)]
    assert network.names == ("stem", *stages, "head")
    assert network.stages == ("stem", "stage1/2", "stage2/2", "stage3/2", "stage4/2")
    images = jax.ShapeDtypeStruct((2, 224, 160, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    features, _ = jax.eval_shape(partial(network.features, train=True), variables, images)
    assert {features[name].shape for name in network.names[:-1]} == {(2, 14, 10, 384)}
    assert features["head"].shape == (2, 1000)
    heads = [variables["params"][block]["attention"]["query"]["kernel"].shape for block in stages]
    assert heads == [(384, 6, 64)] * 12
    # No parameter depends on the image size.
    network.check(variables, jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.float32))


def test_modules_of_equal_layers_end_at_ends_of_stages():
    network = create("vit_ti16", classes=10)
    assert [block.layers for block in network.modules] == [1, *[4] * 12, 1]
    assert equal_layers(network, 2) == ("stage2/2",)
    assert equal_layers(network, 4) == network.stages[1:4]
    assert equal_layers(network, 14) == network.names[:-1]


def test_positions_by_hand():
    # Two frequencies, 1 and 1/10000; the sine of x, its cosine, the sine of y, its cosine.
    encoded = positions(2, 3, 8)
    assert encoded.shape == (2, 3, 8) and encoded.dtype == np.float64
    np.testing.assert_array_equal(encoded[0, 0], [0, 0, 1, 1, 0, 0, 1, 1])
    of_x = [0.909297426825682, 1.99999998666667e-4, -0.416146836547142, 0.999999980000000]
    of_y = [0.841470984807897, 9.99999998333333e-5, 0.540302305868140, 0.999999995000000]
    np.testing.assert_allclose(encoded[1, 2], of_x + of_y, rtol=1e-14, atol=1e-15)
    # A third of the way from 1 to 1/10000 on a logarithmic scale.
    np.testing.assert_allclose(positions(1, 2, 16)[0, 1, 1], math.sin(10 ** (-4 / 3)), rtol=1e-14)


def norm(own, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * own["scale"] + own["bias"]


def plain_block(own, x):
    """An encoder block, for one image and one head at a time."""
    out = []
    for image in x.reshape(len(x), -1, WIDTH):
        y = norm(own["norm1"], image)
        attention = own["attention"]
        added = attention["out"]["bias"]
        for head in range(HEADS):
            query, key, value = (
                y @ attention[name]["kernel"][:, head] + attention[name]["bias"][head]
                for name in ("query", "key", "value")
            )
            scores = np.exp(query @ key.T / math.sqrt(WIDTH / HEADS))
            added = added + scores / scores.sum(1, keepdims=True) @ value @ attention["out"]["kernel"][head]
        image = image + added
        y = norm(own["norm2"], image) @ own["linear1"]["kernel"] + own["linear1"]["bias"]
        y = y / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        out.append(image + y @ own["linear2"]["kernel"] + own["linear2"]["bias"])
    return np.reshape(out, x.shape)


def test_features_equal_those_of_a_plain_composition_in_float64():
    shape = (2, 8, 12, 3)
    variables = varied(TINY, 0, jax.ShapeDtypeStruct(shape, jnp.float32), "float64")
    images = np.random.default_rng(1).standard_normal(shape)
    own = variables["params"]
    x = np.zeros((2, 2, 3, WIDTH))
    for i, j in np.ndindex(2, 3):
        patch = images[:, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH].reshape(2, -1)
        frequencies = 10_000 ** -np.array([0, 0.5, 1])
        encoded = [f(at * frequencies) for at in (j, i) for f in (np.sin, np.cos)]
        x[:, i, j] = patch @ own["stem"]["kernel"].reshape(-1, WIDTH) + own["stem"]["bias"] + np.concatenate(encoded)
    expected = {"stem": x}
    for name in TINY.names[1:-1]:
        x = expected[name] = plain_block(own[name], x)
    pooled = norm(own["head"]["norm"], x).mean(axis=(1, 2))
    expected["head"] = pooled @ own["head"]["linear"]["kernel"] + own["head"]["linear"]["bias"]
    with jax.enable_x64(True):
        features, statistics = TINY.features(variables, jnp.asarray(images), train=True)
        read = TINY["head"].apply({"params": own["head"]}, features["stage4/0"], train=False, method="pool")
        answer = TINY["head"].apply({"params": own["head"]}, read, method="classify")
    assert statistics == {} and tuple(features) == TINY.names
    for name, x in features.items():
        assert x.dtype == np.float64
        np.testing.assert_allclose(x, expected[name], rtol=1e-10, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(read, pooled, rtol=1e-10)
    np.testing.assert_allclose(answer, features["head"], rtol=1e-12, atol=1e-14)


@pytest.mark.usually("bfloat16")
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_compute_dtype_leaves_parameters_in_float32(dtype):
    network = vision_transformer(classes=3, width=8, heads=2, depth=4, patch_size=4, dtype=jnp.dtype(dtype))
    with jax.enable_x64(True):
        variables = jax.eval_shape(network.init, jax.random.key(0), LIKE)
        features, _ = jax.eval_shape(partial(network.features, train=True), variables, LIKE)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {x.dtype for x in features.values()} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(("dtype", "wide"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_softmax_and_statistics_are_computed_in_float32_at_least(dtype, wide):
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct((2, 4, 3, 8), dtype)
        norm = partial(LayerNorm(dtype=jnp.dtype(dtype)).init_with_output, jax.random.key(0))
        for function, arguments, name in ((attend, (x, x, x), "exp"), (norm, (x,), "rsqrt")):
            text = str(jax.make_jaxpr(function)(*arguments))
            kinds = {"bfloat16": "bf16", "float32": "f32", "float64": "f64"}
            lines = [line for line in text.splitlines() if f" = {name} " in line]
            assert lines and all(f":{kinds[wide]}[" in line for line in lines), lines
    # A mean far from zero, where bfloat16 has a resolution of 0.5.
    x = jnp.asarray(100 + np.random.default_rng(0).standard_normal((2, 3, 3, 64)), jnp.bfloat16)
    y = LayerNorm(dtype=jnp.bfloat16).apply({"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}, x)
    expected = np.asarray(x, np.float64)
    expected = (expected - expected.mean(-1, keepdims=True)) / expected.std(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.long
def test_initialisation_is_that_of_the_reference():
    network = vision_transformer(classes=3, width=64, heads=4, depth=4, patch_size=4)
    params = network.init(jax.random.key(0), LIKE)["params"]
    block = params["stage2/0"]
    for kernel, fans in [
        *[(block["attention"][name]["kernel"], 64 + 64) for name in ("query", "key", "value", "out")],
        *[(block[name]["kernel"], 64 + 256) for name in ("linear1", "linear2")],
    ]:
        bound = math.sqrt(6 / fans)  # Xavier uniform
        assert 0.99 * bound < jnp.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(params["stem"]["kernel"].std(), (4 * 4 * 3) ** -0.5, rtol=0.05)
    zeros = [params["stem"]["bias"], params["head"]["linear"], block["attention"]["query"]["bias"]]
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))
    assert 0 < jnp.abs(block["linear1"]["bias"]).max() < 1e-5


@pytest.mark.long
def test_the_gradient_equals_the_difference_quotient_and_reaches_every_weight():
    variables, images = varied(TINY, 2, dtype="float64"), np.random.default_rng(1).standard_normal(LIKE.shape)
    random = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: random.standard_normal(x.shape), variables["params"])

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        logits, _ = TINY.apply({"params": params, "batch_stats": {}}, jnp.asarray(images), train=True)
        return jax.nn.logsumexp(logits, axis=1).sum() - logits[:, 0].sum()

    with jax.enable_x64(True):
        step = lambda size: jax.tree.map(lambda x, d: x + size * d, variables["params"], direction)
        (_, gradient), (above, _), (below, _) = jax.device_get([loss(step(size)) for size in (0.0, 1e-5, -1e-5)])
    for path, leaf in jax.tree.leaves_with_path(gradient):
        # The same number added to all keys does not change the softmax.
        of_keys = [key.key for key in path[-2:]] == ["key", "bias"]
        assert np.isfinite(leaf).all() and (leaf.any() or of_keys), path
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
    np.testing.assert_allclose(along, (above - below) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"classes": 0}, "classes is 0: use 1 or more"),
        ({"width": 14}, "width is 14: use a multiple of 4, at least 8, such as 12 or 16"),
        ({"width": 4}, "width is 4: use a multiple of 4, at least 8, such as 8 or 12"),
        ({"heads": 5}, "heads is 5: use a positive divisor of the width 12, such as one for 64 channels"),
        ({"heads": 0}, "heads is 0: use a positive divisor of the width 12"),
        ({"depth": 6}, "depth is 6: use a multiple of the 4 stages, such as 4 or 8"),
        ({"depth": 0}, "depth is 0: use a multiple of the 4 stages, such as 4 or 8"),
        ({"patch_size": 0}, "patch_size is 0: use 1 or more, such as 16 for images of 224x224"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        vision_transformer(**{"classes": 3, "width": 12, "heads": 3, **arguments})


@pytest.mark.parametrize(("shape", "near"), [((38, 32), "32x32"), ((32, 15), "32x16")])
def test_images_that_the_patch_does_not_divide_are_refused(shape, near):
    text = (
        f"images of {shape[0]}x{shape[1]} do not divide into patches of 16x16: crop or resize them to multiples of "
        f"16, such as {near}, or use another patch_size"
    )
    with pytest.raises(ValueError, match=text):
        create("vit_ti16", classes=3).init(jax.random.key(0), jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32))


@pytest.mark.parametrize("name", ["vit_ti16", "vit_s16"])
def test_an_option_of_another_family_is_refused(name):
    with pytest.raises(ValueError, match=f"shortcut 'padding' is not for {name}: leave it at 'projection'"):
        create(name, classes=3, shortcut="padding")


def still(before, after) -> list[str]:
    """Names of unchanged parameters without biases, some of which batch normalisation cancels."""
    return [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
        if path[-1].key != "bias" and (a == b).all()
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("context", "decoder"),
    [("R0", None), ("E", PIXELS), ("R1", None), ("R1E", PIXELS)],
)
def test_losses_of_a_step_equal_those_of_the_reference_form(context, decoder):
    network = cut(TINY, 4, classes=CLASSES, context=context, decoder=decoder, aux_width=0.5, feature_width=8)
    assert network.boundaries == ("stage1/0", "stage2/0", "stage3/0")
    method = ContSup(network, OPTIMIZER)
    (images, labels), key = batch(), jax.random.key(0)
    state = method.init(key, LIKE)
    before = jax.tree.map(np.array, state)
    expected = jax.jit(network.losses)(before, images, labels)
    step = compile_step(method, images, labels)
    state, metrics = step(state, jnp.array(images), jnp.array(labels), key)
    for name, loss in expected.losses.items():
        np.testing.assert_allclose(metrics[name]["loss"], loss, rtol=1e-5)
    # The network's head starts at zero, so that the last module's block has no gradient in the first step.
    state, _ = step(state, jnp.array(images), jnp.array(labels), key)
    assert not [path for name, part in state.items() for path in still(before[name]["params"], part["params"])]
    keys = [program.key for program in method.programs()]
    assert keys[1] == keys[2] or context == "R1E", "equal modules share an executable"


# Student, teacher, stones, and whether the input of the teacher's blocks has passed a ReLU.
PAIRS = {
    "ViT to ResNet": (RESNET, TINY, 3, False),
    "ResNet to ViT": (TINY, RESNET, 3, True),
    "ViT to ViT": (TINY, FINER, 4, False),
}


@pytest.mark.usually("ResNet to ViT")
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.exhaustive
def test_block_kd_of_different_families(pair):
    student, teacher_network, stones, relu = PAIRS[pair]
    teacher = Teacher(teacher_network, varied(teacher_network, 3))
    method = Distillation(student, (teacher,), BlockKD(), OPTIMIZER)
    (images, labels), key = batch(), jax.random.key(0)
    state = method.init(key, LIKE)
    before = jax.tree.map(np.array, state)
    state, metrics = compile_step(method, images, labels)(state, images, labels, key)
    assert all(np.isfinite(value) for value in metrics["student"].values())
    # A vision transformer's head starts at zero. Its other blocks have gradients through the stones.
    learnt = [{**part["student"]["params"]["student"], "head": {}} for part in (before, state)]
    assert not still(*learnt)
    jax.tree.map(np.testing.assert_array_equal, before["teacher0"], state["teacher0"])

    exits, logits = jax.jit(lambda state: (method.exits(state, images), method.logits(state, images)))(state)
    part = jax.tree.map(np.array, variables_of(state["student"]))
    features = through(student, of_block(part, "student"), images)
    np.testing.assert_allclose(logits, features["head"], rtol=1e-4, atol=1e-5)
    assert list(exits) == [f"stone{i}" for i in range(1, stones + 1)]
    shapes = {name: x.shape for name, x in through(teacher_network, teacher.variables, images).items()}
    for leave, enter, name in zip(student.stages[-stones:], teacher_network.stages[-stones:], exits, strict=True):
        connector = of_block(of_block(of_block(part, "teacher0"), name), "conv")
        x = connected(*connector.values(), np.asarray(features[leave]), shapes[enter], relu=relu)
        remaining = teacher_network[teacher_network.position(enter) + 1 :]
        expected = through(remaining, remaining.select(teacher.variables), x)["head"]
        np.testing.assert_allclose(exits[name], expected, rtol=1e-4, atol=1e-5)


def through(network: Network, variables: dict, x: jax.Array) -> dict[str, jax.Array]:
    """The output of every block in evaluation mode. Equal blocks are compiled once."""
    features = {}
    for name, block in network:
        own = of_block(variables, name)
        x, _ = run(block, own, x, train=False)
        features[name] = x
    return features


def connected(params, running, x, shape, *, relu):
    """A connector by hand: mean over positions or bilinear resizing, 1x1 convolution and running statistics."""
    if shape[1] < x.shape[1]:
        factor = x.shape[1] // shape[1]
        x = x.reshape(len(x), shape[1], factor, shape[2], factor, -1).mean(axis=(2, 4))
    params, running = {**params["conv"], **params["norm"]}, running["norm"]
    x = (x @ params["kernel"][0, 0] - running["mean"]) / np.sqrt(running["var"] + 1e-5)
    x = x * params["scale"] + params["bias"]
    return jax.image.resize(jnp.asarray(np.maximum(x, 0) if relu else x), shape, "bilinear")
