"""Every auxiliary network, with contexts and decoders, passes the same checks: isolation, each way to run a step."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import StoneLoss, TaughtContSup, Teacher, TeacherRule
from kd_local.local import AugLocal, ContSup, Momentum, PixelScale, cut
from kd_local.models import resnet
from kd_local.networks import Network
from kd_local.parallel import StepOptions, compile_step, device_mesh, on_every_device, over_the_batch
from kd_local.training import Checkpoints, make_optimizer, train
from kd_local.training.interruption import Interrupted, Interruption
from tests.support import tiny

WHOLE = resnet(8, classes=4, widths=(4, 4, 8, 8))
NETWORK = Network.of({name: WHOLE[name] for name in ("stem", "stage1/0", "stage2/0", "head")})
TEACHER = resnet(8, classes=4, widths=(6, 6, 8, 10))
SHAPE, BATCH, STEPS = (8, 8, 1), 8, 3
KEY = jax.random.key(3)
OPTIMIZER = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.05, momentum=0.9, nesterov=True))
GREY = PixelScale((60.0,), (50.0,))

TAUGHT = TeacherRule(Teacher(TEACHER, tiny.variables(TEACHER, 1, SHAPE)), SHAPE, StoneLoss(alpha=0.5, beta=0.5))

CUTS: dict[str, dict[str, Any]] = {
    "head": {},
    "dgl": {"head": "dgl"},
    "predsim": {"head": "pool", "loss": "predsim"},
    "contrast": {"loss": "contrast"},
    "auglocal": {"auxiliary": AugLocal(depth=2)},
    "man": {"auxiliary": Momentum(momentum=0.9), "head": "2c2f"},
    "teacher": {"auxiliary": TAUGHT},
    "man_plus": {"auxiliary": Momentum(momentum=0.9, scale="trained"), "head": "dgl_wide"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "R0": {"context": "R0"},
    "R1E": {"context": "R1E"},
    "decoder": {"context": "R0", "decoder": GREY, "loss_scale": (0.5, 1.0, 0.2, 1.0)},
}
NAMES = [f"{name} {variant}" for name in CUTS for variant in VARIANTS]
every = pytest.mark.parametrize("name", NAMES)
exhaustive = pytest.mark.exhaustive


def method(name: str, optimizer: optax.GradientTransformation = OPTIMIZER, **more: Any) -> ContSup:
    auxiliary, variant = name.split(" ")
    cut_network = cut(NETWORK, 3, classes=4, **CUTS[auxiliary], **VARIANTS[variant], **more)
    return (
        TaughtContSup(cut_network, optimizer, rule=TAUGHT)
        if auxiliary == "teacher"
        else ContSup(cut_network, optimizer)
    )


def batch(seed: int, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((BATCH, *SHAPE)).astype(dtype), np.arange(BATCH, dtype=np.int32) % 4


def start(of: ContSup) -> dict[str, Any]:
    """A state in float64."""
    state = of.init(jax.random.key(0), jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32))
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype == jnp.float32 else np.asarray(x), state)


def steps(of: ContSup, state: Any, *, data: int = 1, module: int = 1, form: str = "separate") -> tuple[Any, list[Any]]:
    """`(state after three steps, metrics of each)`, in float64."""
    mesh = device_mesh(data, module)
    step = compile_step(of, *batch(0), state=state, mesh=mesh, options=StepOptions(form=form))
    state, metrics = step.place(state), []
    first = step.plan.groups[0]
    for seed in range(STEPS):
        placed = jax.device_put(batch(seed), over_the_batch(first, BATCH))
        state, values = step(state, *placed, jax.device_put(KEY, on_every_device(first)))
        metrics.append(jax.device_get(values))
    return jax.device_get(state), metrics


@cache
def expected_steps(name: str) -> tuple[Any, Any, Any]:
    """The state before three steps, the state after them, and the metrics, on one device."""
    of = method(name)
    state = start(of)
    return state, *steps(of, state)


def assert_close(a: Any, b: Any, *, rtol: float = 1e-9) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        scale = np.abs(y).max(initial=0)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale + 1e-15, err_msg=jax.tree_util.keystr(path))


@every
@exhaustive
@jax.numpy_dtype_promotion("standard")
def test_no_gradient_leaves_a_module(name):
    """The gradient of a module's loss with respect to all other parts of the state is exactly zero."""
    of = method(name)
    images, labels = batch(0, np.float32)
    variables = of.cut_network.init(jax.random.key(0), images)
    params = {part: own["params"] for part, own in variables.items()}

    def loss(params: Any, module: str) -> Any:
        merged = {part: {**own, "params": params[part]} for part, own in variables.items()}
        return of.cut_network.losses(merged, images, labels).losses[module]

    for module in of.cut_network.modules:
        gradients = jax.jit(jax.grad(loss), static_argnums=1)(params, module.name)
        for part, own in gradients.items():
            assert any(leaf.any() for leaf in jax.tree.leaves(own)) == (part == module.name), (module.name, part)


@every
@exhaustive
@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize(
    "options",
    [{"form": "joined"}, {"data": 2}, {"module": 2}, {"data": 2, "module": 2}],
    ids=["joined", "data", "module", "data-module"],
)
def test_each_way_to_run_a_step_gives_the_same_state(name, options):
    with jax.enable_x64(True):
        state, expected, metrics = expected_steps(name)
        found, others = steps(method(name), state, **options)
        assert_close(others, metrics)
        assert_close(found, expected)


@every
@exhaustive
@jax.numpy_dtype_promotion("standard")
def test_rematerialisation_changes_nothing(name):
    remat = [one for one in ("blocks", "contexts", "head", "decoder") if one != "decoder" or name.endswith("decoder")]
    with jax.enable_x64(True):
        state, expected, metrics = expected_steps(name)
        found, others = steps(method(name, remat=remat), state)
        assert_close(others, metrics)
        assert_close(found, expected)


@every
@exhaustive
@jax.numpy_dtype_promotion("standard")
def test_accumulated_gradients_are_those_of_the_reference_form(name):
    """Two batches, one update with the mean of the gradients that `CutNetwork.losses` has at the first parameters."""
    rate = 0.1
    with jax.enable_x64(True):
        of = method(name, make_optimizer("sgd", rate, momentum=0.0, weight_decay=0.0, accumulate=2))
        state = start(of)
        trained = {module.name for module in of.cut_network.modules}

        def loss(params: Any, images: Any, labels: Any) -> Any:
            merged = {part: {**own, "params": params.get(part, own["params"])} for part, own in state.items()}
            return sum(of.cut_network.losses(merged, images, labels).losses.values())

        gradient = jax.jit(jax.grad(loss))
        params = {part: own["params"] for part, own in state.items() if part in trained}
        step = compile_step(of, *batch(0), state=state)
        after = jax.device_put(state, on_every_device(step.plan.mesh))
        found, frozen = [], dict(state)
        for seed in range(2):
            # An average moves with each batch, so the second gradient is taken with it.
            state = {part: jax.device_get(own) if part not in trained else frozen[part] for part, own in after.items()}
            found.append(gradient(params, *batch(seed)))
            jax.clear_caches()
            gradient = jax.jit(jax.grad(loss))
            placed = jax.device_put(batch(seed), on_every_device(step.plan.mesh))
            after, _ = step(after, *placed, KEY)
        expected = jax.tree.map(lambda p, a, b: p - rate * (a + b) / 2, params, *found)
        assert_close({part: jax.device_get(after[part]["params"]) for part in trained}, expected)


@every
@exhaustive
def test_an_interrupted_run_ends_with_the_same_bits(name, tmp_path):
    data = tiny.data(32, 8)
    run = {"epochs": 3, "batch_size": 8}
    expected = train(method(name), data, **run)
    interruption = Interruption()

    class Stop:
        def on_start(self, plan):
            pass

        def on_step(self, record):
            if record.step == 5:
                interruption.received = 15

        def on_epoch(self, record):
            pass

    with Checkpoints(tmp_path) as checkpoints, pytest.raises(Interrupted):
        train(method(name), data, **run, checkpoints=checkpoints, observers=(Stop(),), interruption=interruption)
    with Checkpoints(tmp_path) as checkpoints:
        found = train(method(name), data, **run, checkpoints=checkpoints)
    assert found.step == expected.step == 12
    for (path, x), y in zip(jax.tree.leaves_with_path(expected.state), jax.tree.leaves(found.state), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


@every
def test_only_the_network_and_its_contexts_are_deployed(name):
    of = method(name)
    state = jax.eval_shape(of.init, KEY, jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32))
    deployed = of.deployed(state)
    assert set(deployed) == {module.name for module in of.cut_network.modules}
    assert {key.rstrip("0123456789") for own in deployed.values() for key in own} <= {"blocks", "context"}
