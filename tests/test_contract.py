"""Every method, context, head and loss through the same checks of the contract."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.contract import Method
from kd_local.parallel import Step, data_mesh, on_every_device, over_the_batch

_spec = importlib.util.spec_from_file_location("methods", Path(__file__).parent / "methods.py")
methods = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(methods)

KEY = jax.random.key(5)


def batch(size: int = 8, seed: int = 0):
    images = jax.random.normal(jax.random.key(seed), (size, 8, 8, 3))
    return images, jnp.arange(size, dtype=jnp.int32) % 10


def run(method: Method, devices: int = 1, steps: int = 2, size: int = 8, last: int | None = None):
    mesh = data_mesh(devices)
    state = jax.device_put(method.init(jax.random.key(0), batch()[0]), on_every_device(mesh))
    step = Step(method, mesh)
    for i in range(steps):
        images, labels = batch(last if last and i == steps - 1 else size, seed=i)
        placed = jax.device_put((images, labels), over_the_batch(mesh, len(images)))
        state, metrics = step(state, *placed, jax.device_put(KEY, on_every_device(mesh)))
    return state, metrics, step


@pytest.fixture(params=methods.METHODS, scope="module")
def method(request) -> Method:
    return methods.METHODS[request.param]


def test_it_is_a_method(method):
    assert isinstance(method, Method)


def test_programs_hand_on_what_they_read_and_own_the_state(method):
    state = method.init(jax.random.key(0), batch()[0])
    programs = method.programs()
    assert [program.name for program in programs] == list(state)
    there = {"images", "labels"}
    for program in programs:
        assert set(program.reads) <= there
        assert set(program.frozen) <= state.keys()
        there.update(program.writes)
    read = {name for program in programs for name in program.reads}
    written = {name for program in programs for name in program.writes}
    assert written <= read, "a tensor is handed on that nobody reads"


def test_every_part_learns_and_metrics_are_finite(method):
    state = method.init(jax.random.key(0), batch()[0])
    before = jax.tree.map(np.array, state)
    after, metrics, _ = run(method, steps=1)
    assert metrics.keys() == state.keys()
    for name, part in after.items():
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before[name]["params"], part["params"])
        assert all(jax.tree.leaves(moved)), f"parameters of {name} stand still"
        assert np.isfinite(metrics[name]["loss"])


def test_nothing_is_compiled_on_the_second_step(method):
    mesh = data_mesh()
    step = Step(method, mesh)
    state, _ = step(method.init(jax.random.key(0), batch()[0]), *batch(), KEY)
    second = batch(seed=1)
    with jax.log_compiles(False), _no_compilation():
        step(state, *second, KEY)


class _no_compilation:
    def __enter__(self):
        self.active = True
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def __exit__(self, *_):
        self.active = False

    def _on_event(self, event: str, duration: float, **_):
        if self.active:
            assert "compile" not in event, event


def test_the_last_small_batch_is_accepted(method):
    state, metrics, _ = run(method, steps=2, last=3)
    assert all(np.isfinite(m["loss"]) for m in metrics.values())


def test_the_state_and_what_is_handed_on_are_donated(method):
    step = Step(method)
    state = method.init(jax.random.key(0), batch()[0])
    sizes = {name: sum(x.nbytes for x in jax.tree.leaves(part)) for name, part in state.items()}
    for name, lowered in step.lower(state, *batch(), KEY).items():
        assert lowered.compile().memory_analysis().alias_size_in_bytes >= sizes[name], name
    new, _ = step(state, *batch(), KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


def test_logits_are_of_the_deployed_parameters_alone(method):
    state, _, _ = run(method)
    images, _ = batch()
    logits = method.logits(state, images)
    assert logits.shape == (8, 10)
    deployed = {id(leaf) for leaf in jax.tree.leaves(method.deployed(state))}
    rest_silent = {
        name: {**part, "params": jax.tree.map(lambda x: x if id(x) in deployed else jnp.zeros_like(x), part["params"])}
        for name, part in state.items()
    }
    np.testing.assert_array_equal(logits, method.logits(rest_silent, images))
    gradient = jax.grad(lambda s: method.logits(s, images)[:, 0].sum(), allow_int=True)(state)
    used = [jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(method.deployed(gradient))]
    assert all(used), "a deployed parameter has no influence on the logits"


def test_eight_devices_give_what_one_gives(method):
    one, one_metrics, _ = run(method, devices=1, size=16)
    eight, eight_metrics, _ = run(method, devices=8, size=16)
    for a, b in zip(jax.tree.leaves(one_metrics), jax.tree.leaves(eight_metrics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for path, a in jax.tree.leaves_with_path(one):
        b = dict(jax.tree.leaves_with_path(eight))[path]
        scale = float(jnp.abs(a).max()) if a.size else 0.0
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * scale + 1e-6, err_msg=jax.tree_util.keystr(path))
