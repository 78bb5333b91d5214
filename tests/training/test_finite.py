"""Numbers that are not finite: in a state, wherever they are, in given weights, and in the inputs of a step."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from kd_local.contract import Program
from kd_local.data import Augmentation
from kd_local.networks import by_block
from kd_local.parallel import StepOptions, device_mesh, plan_step
from kd_local.training import CheckpointError, Checkpoints, NotFiniteError, TeacherCache, check_finite, evaluate, train
from kd_local.training import loop as training_loop
from kd_local.training.finite import CHECK_EVERY, StateCheck, check_scores
from kd_local.training.records import Scores, SplitScores
from tests.support import tiny
from tests.test_contract import METHODS, usually

WRONG = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def placed(method, mesh, options=StepOptions()):
    """The plan of a method's step on a mesh, and a state on its devices."""
    images, labels = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    plan = plan_step(method, images, labels, mesh=mesh, options=options)
    return plan, plan.place(method.init(jax.random.key(0), images))


def put(state, name, index, value):
    """The state with one number of the n-th array of a part replaced, and the array's path."""
    flat, structure = jax.tree.flatten_with_path(state[name])
    path, leaf = flat[index]
    array = np.array(leaf)
    array[(-1,) * array.ndim] = value
    leaves = [leaf for _, leaf in flat]
    leaves[index] = jax.device_put(array, leaf.sharding)
    return {**state, name: jax.tree.unflatten(structure, leaves)}, path


def poison_each_array(check, state):
    """Looks at a state once for each array of floating point, of which one number is not finite."""
    values = list(WRONG.values())
    for name, part in state.items():
        for index, leaf in enumerate(jax.tree.leaves(part)):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                continue
            poisoned, path = put(state, name, index, values[index % 3])
            with pytest.raises(ValueError, match="is not finite") as refused:
                check.begin(poisoned, 0)
            kind = {"params": "parameters", "batch_stats": "statistics", "opt_state": "optimizer state"}[path[0].key]
            shown = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            assert str(refused.value).endswith(f"the {kind} of {name} ({shown})")


def poison_each_kind_after_a_step(check, plan, state):
    """The same by `after`, for one array of each kind of each program that trains."""
    programs = [program for call in plan.calls for program in call.piece.programs if program.trains]
    step = 0
    for program in programs:
        kinds = {}
        for index, (path, leaf) in enumerate(jax.tree.leaves_with_path(state[program.name])):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                kinds[path[0].key] = index
        for index in kinds.values():
            check.begin(state, step)
            step += CHECK_EVERY
            poisoned, _ = put(state, program.name, index, np.nan)
            with pytest.raises(NotFiniteError) as error:
                for later in range(step, step + CHECK_EVERY):
                    check.after(later, poisoned if later == step else state)
            assert (error.value.program, error.value.step) == (program.name, step)
            assert error.value.last_finite == step - CHECK_EVERY
            check = StateCheck(plan, state)


@pytest.fixture(params=map(usually, METHODS), scope="module")
def method(request):
    yield METHODS[request.param]
    jax.clear_caches()


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.exhaustive)])
@pytest.mark.exhaustive
def test_every_array_of_every_method_is_looked_at(method, devices):
    """Blocks, heads, contexts, connectors, decoders, teachers: parameters, statistics and the optimizer's state."""
    plan, state = placed(method, device_mesh(devices))
    check = StateCheck(plan, state)
    check.begin(state, 0)
    poison_each_array(check, state)
    poison_each_kind_after_a_step(check, plan, state)


@dataclass(frozen=True)
class Counts:
    """Two programs that count, in parts with all kinds of state: floating point of three widths, integers and keys.
    The second reads a part that no program owns."""

    deployed_program = None
    size: int = 3
    key: int | None = 3

    def init(self, rng, images):
        def part():
            keys = () if self.key is None else (jax.random.key(self.key),)
            return {
                "params": {"stem": jnp.ones((self.size, 4)), "head": jnp.ones((), jnp.bfloat16)},
                "batch_stats": {"stem": {"mean": jnp.zeros(2), "count": jnp.zeros((), jnp.int32)}},
                "opt_state": (jnp.zeros((self.size, 4)), optax.EmptyState(), *keys),
            }

        return {"first": part(), "second": part(), "teacher": {"params": jnp.ones(2, jnp.float16)}}

    def programs(self):
        def count(writes, part, frozen, tensors, rng, constants):
            mean = part["batch_stats"]["stem"]["mean"] + 1
            part = {**part, "batch_stats": {"stem": {**part["batch_stats"]["stem"], "mean": mean}}}
            return part, tensors[:writes], {"loss": mean.mean()}

        return (
            Program("first", "first", partial(count, 1), ("images",), ("more",)),
            Program("second", "second", partial(count, 0), ("more",), frozen=("teacher",)),
        )

    def logits(self, state, images):
        return jnp.zeros((len(images), 4)) + state["second"]["batch_stats"]["stem"]["mean"][0] * 0

    def exits(self, state, images):
        return {}

    def deployed(self, state):
        return {}


MESHES = {
    "one": ((1, 1), "nothing"),
    "data": ((4, 1), "nothing"),
    "module": ((1, 2), "nothing"),
    "data and module": ((2, 2), "nothing"),
    "sharded": ((4, 1), "state"),
}


@pytest.mark.parametrize("name", MESHES)
def test_every_kind_of_state_on_every_mesh(name):
    mesh, shard = MESHES[name]
    plan, state = placed(Counts(size=1024), device_mesh(*mesh), StepOptions(shard=shard))
    check = StateCheck(plan, state)
    check.begin(state, 0)
    poison_each_array(check, state)
    poison_each_kind_after_a_step(check, plan, state)


def test_a_copy_that_differs_on_one_device_is_found():
    plan, state = placed(Counts(), device_mesh(4))
    check = StateCheck(plan, state)
    mean = state["first"]["batch_stats"]["stem"]["mean"]
    sharding = mean.sharding
    assert isinstance(sharding, NamedSharding) and sharding.is_fully_replicated
    copies = [
        jax.device_put(np.array([0, np.nan if i == 2 else 0], np.float32), device)
        for i, device in enumerate(sharding.mesh.devices.flat)
    ]
    state["first"]["batch_stats"]["stem"]["mean"] = jax.make_array_from_single_device_arrays((2,), sharding, copies)
    with pytest.raises(ValueError, match=r"the statistics of first \(stem/mean\)"):
        check.begin(state, 0)


def test_the_state_may_be_donated_while_it_is_looked_at():
    plan, state = placed(Counts(size=100_000), device_mesh(1))
    check = StateCheck(plan, state)
    overwrite = jax.jit(lambda x: x * jnp.float32(jnp.nan), donate_argnums=0)
    for step in (CHECK_EVERY, 2 * CHECK_EVERY):
        check.after(step, state)
        stem = state["first"]["params"]["stem"]
        state["first"]["params"]["stem"] = overwrite(stem)
        assert stem.is_deleted()
        if step == CHECK_EVERY:
            check.after(step + 1, state)  # reads the answer about the state before
            state["first"]["params"]["stem"] = jax.device_put(np.ones((100_000, 4), np.float32), stem.sharding)
    with pytest.raises(NotFiniteError):
        check.settle(2 * CHECK_EVERY + 1, state)


def test_all_that_is_wrong_is_counted_and_parameters_are_named_first():
    plan, state = placed(Counts(), device_mesh(1))
    check = StateCheck(plan, state)
    for name, index in (("first", 1), ("second", 4), ("second", 2)):
        state, _ = put(state, name, index, np.nan)
    with pytest.raises(NotFiniteError) as error:
        check.settle(7, state)
    assert str(error.value) == (
        "the state is not finite after step 7: the parameters of second (head) and 2 more of its arrays, in second, "
        "first; it was finite after step 0"
    )


@dataclass
class Poisoned:
    """A step of a run that puts a NaN into the n-th array of a part of the state after one step."""

    take_steps: Any
    step: int
    name: str
    index: int

    def __call__(self, state, batches):
        state, metrics = self.take_steps(state, batches)
        if batches[-1].step + 1 == self.step:
            with jax.transfer_guard("allow"):
                state, _ = put(state, self.name, self.index, np.nan)
        return state, metrics

    def __getattr__(self, name):
        return getattr(self.take_steps, name)


@pytest.fixture
def poison(monkeypatch):
    prepare = training_loop.prepare_step

    def poison(step, name, index):
        def poisoned(*arguments, **options):
            take_steps, state = prepare(*arguments, **options)
            return Poisoned(take_steps, step, name, index), state

        monkeypatch.setattr(training_loop, "prepare_step", poisoned)

    return poison


DATA = tiny.data(80, 4)  # 40 steps of an epoch with batches of 2


@pytest.mark.parametrize("mesh", [(1, 1), (2, 1), (1, 2)])
def test_a_run_ends_within_a_stated_number_of_steps(poison, mesh):
    poison(5, "second", 2)
    seen = []

    class Watch:
        on_start = on_epoch = staticmethod(lambda _: None)
        on_step = staticmethod(lambda record: seen.append(record.step))

    with pytest.raises(NotFiniteError, match="it was finite after step 0") as error:
        train(Counts(), tiny.data(120, 4), epochs=1, batch_size=2, mesh=device_mesh(*mesh), observers=(Watch(),))
    assert (error.value.program, error.value.kind, error.value.step) == ("second", "optimizer state", CHECK_EVERY)
    assert error.value.path == "0"
    assert seen == list(range(1, CHECK_EVERY + 1))  # the next ones were in flight


def test_an_epoch_ends_with_a_look(poison):
    poison(5, "first", 1)
    epochs = []

    class Watch:
        on_start = on_step = staticmethod(lambda _: None)
        on_epoch = staticmethod(epochs.append)

    with pytest.raises(NotFiniteError) as error:
        train(Counts(), DATA, epochs=2, batch_size=16, observers=(Watch(),))
    assert (error.value.kind, error.value.path, error.value.step) == ("statistics", "stem/mean", 5)
    assert epochs == []


def test_what_is_not_finite_is_never_saved(poison, tmp_path):
    poison(3, "first", 2)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(NotFiniteError, match="after step 3.*it was finite after step 2"):
            train(Counts(), DATA, epochs=1, batch_size=2, checkpoints=checkpoints, checkpoint_seconds=0.0)
        checkpoints.wait()
        assert checkpoints.last_good() == 2


def test_a_checkpoint_that_is_not_finite_is_refused_by_name(tmp_path):
    method = Counts(key=None)
    _, state = placed(method, device_mesh(1))
    state, _ = put(state, "second", 2, np.inf)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, {"state": state, "sums": jnp.zeros(2)})
        with pytest.raises(CheckpointError, match=r"checkpoint 4 .* the optimizer state of second \(0\); delete .*/4"):
            train(method, DATA, epochs=1, batch_size=2, checkpoints=checkpoints)


def test_a_fresh_state_is_refused_before_anything_is_compiled(monkeypatch):
    @dataclass(frozen=True)
    class Wrong(Counts):
        def init(self, rng, images):
            return {**super().init(rng, images), "teacher": {"params": jnp.full(2, jnp.inf, jnp.float16)}}

    monkeypatch.setattr("kd_local.training.training_step.compile_plan", None)
    with pytest.raises(ValueError, match="the state before the first step: teacher/params is not finite"):
        train(Wrong(), DATA, epochs=1, batch_size=2)


def test_extra_tensors_are_refused_by_name():
    @dataclass(frozen=True)
    class Reads(Counts):
        def programs(self):
            first, second = super().programs()
            return Program(first.name, first.key, first.function, ("images", "weight"), ("more",)), second

    weight = lambda step, chosen: np.float32(np.nan if step == 2 else 1)
    with pytest.raises(ValueError, match="the extra tensors of step 3: weight is not finite"):
        train(Reads(), DATA, epochs=1, batch_size=2, extra={"weight": weight})


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_given_weights_are_refused_by_name(value):
    variables = by_block({"stem": {"params": {"kernel": np.ones((2, 3), np.float32)}}})
    check_finite(variables, of="weights.pt")
    variables["params"]["stem"]["kernel"][1, 2] = value
    with pytest.raises(ValueError, match=r"^weights.pt: params/stem/kernel is not finite \(1 of its 6 numbers\)") as e:
        check_finite(variables, of="weights.pt")
    assert "learning" not in str(e.value)


def test_evaluation_refuses_what_its_scores_may_hide():
    state = Counts().init(None, None)
    state["second"]["params"]["head"] = jnp.asarray(np.nan, jnp.bfloat16)
    with pytest.raises(ValueError, match="the state to evaluate: second/params/head is not finite"):
        evaluate(Counts(), state, DATA, batch_size=2, mesh=device_mesh(1))


def test_a_cache_refuses_a_teacher(tmp_path):
    network = tiny.network()
    variables = jax.tree.map(np.array, tiny.variables(network, shape=(8, 8, 1)))
    cache = TeacherCache(network, variables, DATA, tmp_path, batch_size=8, steps=4)
    jax.tree.leaves(variables["batch_stats"]["stem"])[-1][0] = np.nan
    with pytest.raises(ValueError, match="the teacher: batch_stats/stem/.* is not finite"):
        cache.fill()


def test_scores_are_looked_at():
    scores = {"test": SplitScores(1.0, 0.5, {"module00": Scores(float("inf"), 0.1)})}
    with pytest.raises(NotFiniteError, match="the test loss of module00 is inf at step 9"):
        check_scores(scores, 9)
    check_scores({"test": SplitScores(1.0, 0.5)}, 9)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1e-37), (1e38, 0.1), (127.0, 1e-50)])
def test_images_are_finite_once_they_are_normalised(mean, std):
    with pytest.raises(ValueError, match="scale of the pixels"):
        Augmentation(mean=(mean,), std=(std,))
