"""HPFF and MLAAN against a reference form: one function with the two chains of the authors' code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.local import HPFF, MLAAN, AugLocal, PairTraining, PixelScale, cut, man_boundaries
from kd_local.local.hpff import patches
from kd_local.local.mlaan import leaping_blocks
from kd_local.models import create, resnet
from kd_local.parallel import StepOptions, compile_step, device_mesh, on_every_device, over_the_batch
from tests.local.two_chains import Reference

NETWORK = resnet(8, classes=3, widths=(4, 4, 4, 4))
PIXELS = PixelScale(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))
BATCH = 6
RATE = 0.1


def method_of(rule: Any, optimizer: Any = None, **cutting: Any) -> PairTraining:
    boundaries = ("stage1/0", "stage2/0", "stage3/0") if isinstance(rule, HPFF) else ("stem", "stage1/0", "stage2/0")
    cut_network = cut(NETWORK, classes=3, boundaries=boundaries, context="R0", head="0c1f", **cutting)
    return PairTraining(cut_network, rule, optimizer or optax.sgd(RATE))


WEIGHTS = {"weight_x": 0.25, "weight_y": 0.5}
ENDS = {"reconstruction_first": 3.0, "reconstruction_last": 1.0, "head_first": 0.5, "head_last": 2.0}
METHODS = {
    "hpff": method_of(HPFF(**WEIGHTS, **ENDS), decoder=PIXELS),
    "hpff, one network for all patches": method_of(HPFF(**WEIGHTS, **ENDS, faithful=False), decoder=PIXELS),
    "hpff without decoder": method_of(HPFF(**WEIGHTS)),
    "mlaan": method_of(MLAAN(**WEIGHTS, momentum=0.75)),
    "mlaan, all averages": method_of(MLAAN(**WEIGHTS, momentum=0.75, faithful=False)),
}


def start(method: PairTraining) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(0)
    images = random.standard_normal((BATCH, 8, 8, 3))
    labels = random.integers(0, 3, BATCH).astype(np.int32)
    shapes = jax.eval_shape(method.init, jax.random.key(0), jax.ShapeDtypeStruct(images.shape, jnp.float32))
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    some = lambda x: random.uniform(0.1, 0.5, x.shape) if floating(x) else np.zeros(x.shape, x.dtype)
    return jax.tree.map(some, shapes), images, labels


def expected_step(method: PairTraining, state: Any, images: Any, labels: Any) -> tuple[Any, Any, Any]:
    """`(loss, parameters, statistics)` after one step, by the reference form."""
    averages = {name: part["params"] for name, part in state.items() if name.startswith("average")}
    names = [name for name in state if name not in averages]
    stats = {name: state[name]["batch_stats"] for name in names}

    @jax.jit
    def gradients(params: Any) -> Any:
        def objective(params: Any) -> Any:
            reference = Reference(method, params, stats, averages)
            return reference.loss(jnp.asarray(images), jnp.asarray(labels)), reference.stats

        return jax.value_and_grad(objective, has_aux=True)(params)

    params = {name: state[name]["params"] for name in names}
    (loss, after_stats), found = gradients(params)
    after = jax.tree.map(lambda p, g: p - RATE * g, params, found)
    return loss, after, after_stats


def run(method: PairTraining, state: Any, images: Any, labels: Any, *, devices: int = 1, form: str = "separate") -> Any:
    mesh = device_mesh(devices)
    state = jax.device_put(state, on_every_device(mesh))
    placed = jax.device_put((images, labels), over_the_batch(mesh, BATCH))
    step = compile_step(method, *placed, state=state, mesh=mesh, options=StepOptions(form=form))
    return jax.device_get(step(step.place(state), *placed, jax.random.key(0)))


def compare(found: Any, expected: Any, rtol: float = 1e-9) -> None:
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12, err_msg=jax.tree_util.keystr(path))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("devices", "form"), [(1, "separate"), (1, "joined"), (2, "separate"), (2, "joined")])
@jax.numpy_dtype_promotion("standard")
def test_a_step_is_that_of_the_two_chains(name, devices, form):
    with jax.enable_x64(True):
        method = METHODS[name]
        state, images, labels = start(method)
        loss, params, stats = expected_step(method, state, images, labels)
        after, metrics = run(method, state, images, labels, devices=devices, form=form)
    *pairs, last = [module.name for module in method.cut_network.modules]
    np.testing.assert_allclose(sum(metrics[pair]["loss"] for pair in pairs), loss, rtol=1e-10)
    np.testing.assert_allclose(metrics[last]["loss"], metrics[pairs[-1]]["head_loss"], rtol=1e-12)
    compare({part: after[part]["params"] for part in params}, params)
    compare({part: after[part]["batch_stats"] for part in params}, stats)
    for part, old in state.items():
        if part.startswith("average"):
            moves = not method.rule.faithful or part == "average02"
            blocks = leaping_blocks(NETWORK, method.cut_network.boundaries, int(part[-2:]))
            of_network = of_blocks(method, state)
            for i, own in old["params"].items():
                mean = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, own, of_network[blocks[int(i)]]) if moves else own
                compare(after[part]["params"][i], mean)


def of_blocks(method: PairTraining, state: Any) -> dict[str, Any]:
    """The parameters of the network's blocks by name."""
    return {
        name: state[module.name]["params"]["blocks"][str(i)]
        for module in method.cut_network.modules
        for i, name in enumerate(module.names)
    }


@pytest.mark.exhaustive
@jax.numpy_dtype_promotion("standard")
def test_gradients_that_are_accumulated_are_those_of_their_batches():
    """In float32, since `optax.MultiSteps` accumulates in it."""
    plain = METHODS["hpff without decoder"]
    method = method_of(HPFF(**WEIGHTS), optax.MultiSteps(optax.sgd(RATE), 2).gradient_transformation())
    state, images, labels = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, start(method))
    start_of_plain = {name: {**part, "opt_state": plain.optimizer.init({})} for name, part in state.items()}
    first, second = (run(plain, start_of_plain, each, labels)[0] for each in (images, images[::-1]))
    middle, _ = run(method, state, images, labels)
    after, _ = run(method, middle, images[::-1], labels)
    for part in state:
        compare(middle[part]["params"], state[part]["params"])
        # x - (a + b) / 2 is the mean of x - a and x - b.
        mean = jax.tree.map(lambda a, b: (a + b) / 2, first[part]["params"], second[part]["params"])
        compare(after[part]["params"], mean, rtol=1e-4)


@pytest.mark.exhaustive
def test_copies_start_equal_to_the_blocks():
    method = METHODS["mlaan"]
    state = method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    blocks = of_blocks(method, state)
    assert leaping_blocks(NETWORK, method.cut_network.boundaries, 1) == ("stage2/0", "stage3/0")
    for copy in (state["module00"]["params"]["leap0"], state["average01"]["params"]["0"]):
        jax.tree.map(np.testing.assert_array_equal, copy, blocks["stage2/0"])
    jax.tree.map(np.testing.assert_array_equal, state["module00"]["params"]["leap1"], blocks["stage3/0"])
    assert set(state["average01"]["params"]) == {"0"}


def test_weights_of_pairs_follow_the_number_of_the_table():
    def weights(modules: int) -> list[tuple[float, ...]]:
        network = create("resnet32", classes=10)
        boundaries = man_boundaries(network, modules)
        cut_network = cut(network, classes=10, boundaries=boundaries, context="R0", head="2c2f", decoder=PIXELS)
        return [pair.weights for pair, _ in PairTraining(cut_network, HPFF(), optax.sgd(0.1)).pairs()]

    eight, fifteen = weights(8), weights(15)
    assert eight[0] == pytest.approx((0.001, 0.999 * 0.5 * 5 / 6, 0.999 * 5 * 5 / 6))
    assert eight[5:] == [(0.001, 0.0, 0.0), (0.001, 0.999)]
    assert fifteen[0] == pytest.approx((0.001, 0.999 * 0.5 * 13 / 14, 0.999 * 5 * 13 / 14))
    assert fifteen[12] == pytest.approx((0.001, 0.999 * 0.5 / 14, 0.999 * 5 / 14))


def test_patches_cover_a_map():
    x = jnp.arange(49.0).reshape(1, 7, 7, 1)
    found = patches(x, 2)
    assert found.shape == (1, 4, 4, 4, 1)
    assert found[0, :, 0, 0, 0].tolist() == [0, 3, 21, 24]
    assert found[0, :, -1, -1, 0].tolist() == [24, 27, 45, 48]
    assert patches(jnp.ones((1, 1, 1, 2)), 2).shape == (1, 4, 1, 1, 2)


def test_leaping_blocks_of_other_cuts():
    network = create("resnet20", classes=10)
    found = [leaping_blocks(network, ("stem", "stage1/1", "stage2/2", "stage3/2"), i) for i in range(4)]
    assert found == [
        ("stage1/0", "stage2/0", "stage3/0", "stage3/2"),
        ("stage2/0", "stage3/0", "stage3/1", "stage3/2"),
        ("stage3/0", "stage3/1", "stage3/2"),
        (),
    ]


def cut_of(**arguments: Any) -> Any:
    return cut(NETWORK, 3, classes=3, **{"context": "R0", **arguments})


@pytest.mark.parametrize(
    ("rule", "cut_network", "error"),
    [
        (HPFF(), lambda: cut_of(context="R1"), "context='R0'"),
        (HPFF(), lambda: cut_of(loss="contrast"), "loss='softmax'"),
        (HPFF(), lambda: cut_of(auxiliary=AugLocal()), "leave auxiliary out"),
        (HPFF(), lambda: cut_of(decoder=PIXELS, loss_scale=(5.0, 1.0, 1.0, 1.0)), "leave loss_scale out"),
        (HPFF(), lambda: cut(NETWORK, 1, classes=3), "single module"),
        (HPFF(head_first=1.0), cut_of, "there is no decoder"),
        (HPFF(patches=3), cut_of, "there is no decoder"),
        (MLAAN(), lambda: cut_of(decoder=PIXELS), "MLAAN has no decoder"),
        (MLAAN(leaps=((),)), cut_of, "1 groups for 2 boundaries"),
        (MLAAN(leaps=((), ("stem",))), cut_of, "name a later block"),
    ],
)
def test_refuses(rule, cut_network, error):
    with pytest.raises(ValueError, match=error):
        PairTraining(cut_network(), rule, optax.sgd(0.1))


def test_refuses_blocks_that_do_not_fit():
    rule = MLAAN(leaps=((), ("stage3/1",)))
    network = resnet(14, classes=3, widths=(4, 4, 8, 8))
    cut_network = cut(network, classes=3, boundaries=("stem", "stage1/1"), context="R0")
    method = PairTraining(cut_network, rule, optax.sgd(0.1))
    with pytest.raises(ValueError, match="'stage3/1' behind 'stage1/1' reads features"):
        jax.eval_shape(method.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))


@pytest.mark.parametrize("rule", [HPFF, MLAAN])
def test_refuses_hyper_parameters(rule):
    with pytest.raises(ValueError, match="weight_x and weight_y are 0"):
        rule(weight_x=0.0, weight_y=0.0)
    with pytest.raises(ValueError, match="weight_y is -1"):
        rule(weight_y=-1.0)


def test_leaping_blocks_of_the_authors():
    def leaps(network: Any, modules: int) -> list[str]:
        boundaries = man_boundaries(network, modules)
        found = [leaping_blocks(network, boundaries, i) for i in range(len(boundaries))]
        return [" ".join(name.removeprefix("stage").replace("/", ".") for name in names) for names in found]

    eight, fifteen = (leaps(create("resnet32", classes=10), modules) for modules in (8, 15))
    assert eight[2:] == ["2.0 3.0 3.3 3.4", *["3.0 3.2 3.3 3.4"] * 2, "3.2 3.3 3.4", "3.3 3.4"]
    early, later = "2.0 3.0 3.2 3.4", "2.0 3.0 3.3 3.4"
    assert fifteen[:5] == [early, early, later, early, later]
    assert fifteen[5:9] == ["3.0 3.2 3.3 3.4"] * 4
    assert fifteen[9:] == ["3.0 3.2 3.3 3.4", "3.1 3.2 3.4", "3.2 3.3 3.4", "3.3 3.4", "3.4"]
    network = create("resnet110", classes=10)
    deep, boundaries = leaps(network, 32), man_boundaries(network, 32)
    for names, boundary in zip(deep, boundaries, strict=True):
        stage, block = boundary.removeprefix("stage").split("/")
        if stage == "1":
            assert names == "2.0 3.0 3.2 3.17"
        elif stage == "2":
            assert names == ("3.0 3.3 3.4 3.17" if block == "17" else "3.0 3.2 3.3 3.17")
    assert deep[22:] == [*["3.8 3.17"] * 4, *["3.14 3.17"] * 2, "3.15 3.17", "3.16 3.17", "3.17"]
