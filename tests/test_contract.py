"""Every method, context, head and loss passes the same checks of the contract."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.contract import Method, owner, subtree
from kd_local.distill import OBJECTIVES, Combined, Distillation, StoneLoss, TaughtContSup, Teacher
from kd_local.local import (
    HEADS,
    HPFF,
    LOSSES,
    MLAAN,
    AugLocal,
    ContSup,
    EndToEnd,
    Momentum,
    PairTraining,
    PixelScale,
    cut,
)
from kd_local.local.pair import PairRule
from kd_local.models import resnet
from kd_local.models.class_token import class_token_transformer
from kd_local.networks import Network, by_block, of_block
from kd_local.parallel import CompiledStep, compile_step, device_mesh, on_every_device, over_the_batch
from kd_local.state import new_part
from kd_local.training import make_optimizer
from tests.support.taught import locally_taught

OPTIMIZER = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9, nesterov=True))
GENTLE = optax.sgd(1e-3, momentum=0.9)  # some objectives have weights in the thousands
NETWORK = resnet(8, classes=10)
KEY = jax.random.key(5)
FROM_THE_LOOP = {"images", "labels", "indices", "epoch", "images_strong"}
SIZES = (16, 16, 5)  # two whole batches and an epoch's last one


PIXELS = PixelScale(mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))


def contsup(context: str, modules: int = 4, answer: str = "last", **arguments: Any) -> ContSup:
    return ContSup(cut(NETWORK, modules, classes=10, context=context, **arguments), OPTIMIZER, answer)


def pairs(rule: PairRule, modules: int, **arguments: Any) -> PairTraining:
    return PairTraining(cut(NETWORK, modules, classes=10, context="R0", **arguments), rule, OPTIMIZER)


# At the default weights, heads and decoders of the last pair but one do not train.
HPFF_LATE = HPFF(reconstruction_last=1.0, head_last=0.5)
TEACHER_NETWORK = resnet(8, classes=10, widths=(4, 6, 8, 12))
TOKENS = class_token_transformer(classes=10, width=12, heads=3, depth=4, patch_size=2)


@cache
def trained(seed: int) -> Teacher:
    """A teacher whose batch statistics differ from initial ones."""
    like = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: TEACHER_NETWORK.init(jax.random.key(0), like))
    return Teacher(
        TEACHER_NETWORK, jax.tree.map(lambda x: random.uniform(0.05, 0.3, x.shape).astype(np.float32), shapes)
    )


def distillation(name: str, teachers: int = 1, student: Network = NETWORK, **options: Any) -> Distillation:
    if name == "crd":
        options["negatives"] = 8
    if name == "fcfd":
        # With all paths every bridge learns. The features of these teachers are large.
        options = {"sampled": 4, "feature_weight": 0.02, **options}
    found = tuple(trained(seed) for seed in range(teachers))
    return Distillation(student, found, OBJECTIVES[name](**options), GENTLE, examples=37)


def combined(*names: str, teachers: int = 1) -> Distillation:
    found = tuple(trained(seed) for seed in range(teachers))
    objectives = tuple((OBJECTIVES[name](**({"negatives": 8} if name == "crd" else {})), 0.5) for name in names)
    return Distillation(NETWORK, found, Combined(objectives), GENTLE, examples=37)


def taught(**options: Any) -> TaughtContSup:
    return locally_taught(NETWORK, trained(0), (8, 8, 3), GENTLE, **options)


METHODS: dict[str, Method] = {
    "end_to_end": EndToEnd(NETWORK, OPTIMIZER),
    "end_to_end remat": EndToEnd(NETWORK, OPTIMIZER, remat=True),
    **{f"contsup {context}": contsup(context) for context in ("R0", "E", "R1", "R1E", "R3", "R2E")},
    **{f"contsup R0 {head}": contsup("R0", 2, head=head) for head in HEADS},
    **{f"contsup E {loss}": contsup("E", 2, loss=loss) for loss in LOSSES},
    "contsup E pooled": contsup("E", 4, image_encoder="pooled", aux_width=0.5, feature_width=12),
    "contsup decoder": contsup("R1", 4, decoder=PIXELS, loss_scale=(5.0, 0.05, 0.2, 0.5)),
    "contsup decoder contrast": contsup("E", 3, decoder=PIXELS, loss="contrast"),
    "contsup rematerialised": contsup("R2E", 4, decoder=PIXELS, remat=("blocks", "contexts", "head", "decoder")),
    "contsup pooled rematerialised": contsup("R1E", 4, image_encoder="pooled", remat=("contexts",)),
    "auglocal": contsup("R0", 3, auxiliary=AugLocal(depth=2)),
    "auglocal R1E": contsup("R1E", 4, auxiliary=AugLocal(depth=1), decoder=PIXELS, remat=("head", "decoder")),
    "hpff": pairs(HPFF(), 3, head="2c2f"),
    "hpff decoder": pairs(HPFF_LATE, 4, decoder=PIXELS, remat=("blocks", "head", "decoder")),
    "hpff as described": pairs(replace(HPFF_LATE, faithful=False), 3, decoder=PIXELS),
    "hpff K=2": pairs(HPFF(), 2),
    "mlaan": pairs(MLAAN(), 4, head="0c1f"),
    "mlaan as described": pairs(MLAAN(faithful=False), len(NETWORK), remat=("blocks", "head")),
    "momentum": contsup("R0", 3, auxiliary=Momentum(), loss="contrast"),
    "momentum R1E": contsup(
        "R1E", 4, auxiliary=Momentum(scale="trained"), head="2c2f", decoder=PIXELS, remat=("blocks", "head", "decoder")
    ),
    "contsup early exit": contsup("R1E", 4, "module01"),
    "contsup ensemble": contsup("R0", 3, "ensemble"),
    **{name: distillation(name) for name in OBJECTIVES},
    "block_kd lightweight": distillation("block_kd", stones=(2, 3), distance="dkd"),
    "block_kd both directions": distillation("block_kd", directions="both"),
    "block_kd wttm": distillation("block_kd", distance="wttm", entropy_weight="log_classes"),
    "sd_dkd scales": distillation("sd_dkd", scales=(1, 2, 4), entropy_weight="100"),
    "fcfd batch": distillation("fcfd", teacher_batch_norm="batch"),
    "two teachers": distillation("fitnet", teachers=2),
    "block_kd dot": replace(distillation("block_kd"), optimizer=make_optimizer("sgd", lambda _: 1e-3, dot=0.075)),
    "combined": combined("dkd", "crd", "block_kd"),
    "combined two teachers": combined("kd", "fitnet", teachers=2),
    "block_kd class token": distillation("block_kd", student=TOKENS, alpha=300.0, beta=300.0),
    "ofa class token": distillation("ofa", student=TOKENS, exits_weight=1000.0),
    "teacher": taught(),
    "teacher class token": locally_taught(TOKENS, trained(0), (8, 8, 3), GENTLE),
    "teacher lightweight": taught(objective=StoneLoss(last=False, distance="dkd")),
    "teacher rld": taught(objective=StoneLoss(distance="rld", entropy_weight="100")),
    "teacher R1E": taught(context="R1E", objective=StoneLoss(distance="dist")),
    "teacher K=blocks": taught(context="R1", boundaries=NETWORK.names[:-1], decoder=PIXELS),
    "teacher K=2": taught(boundaries=("stage1/0",), remat=("blocks", "head")),
    "contsup K=1": contsup("R1E", 1),
    "contsup K=blocks": contsup("R1", len(NETWORK)),
}


def batch(size: int, seed: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((size, 8, 8, 3), dtype), np.arange(size, dtype=np.int32) % 10


@dataclass
class Run:
    """Three steps of a method on n devices: states, metrics and compilations."""

    method: Method
    before: Any
    after: Any
    metrics: list[Any]
    compilations: list[list[str]]
    donated: bool


def run(method: Method, devices: int, sizes: tuple[int, ...], dtype: type = np.float32) -> Run:
    mesh = device_mesh(devices)
    everywhere = on_every_device(mesh)
    state = method.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    state = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, state)
    state, key = jax.device_put((state, KEY), everywhere)
    # A copy: a view of a buffer would keep it from being donated.
    before = jax.tree.map(np.array, state)
    steps: dict[int, CompiledStep] = {}
    metrics, compilations, donated = [], [], True
    for i, size in enumerate(sizes):
        placed = jax.device_put(batch(size, i, dtype), over_the_batch(mesh, size))
        seen: list[str] = []
        listen = lambda event, seconds, seen=seen, **_: seen.append(event) if "backend_compile" in event else None
        jax.monitoring.register_event_duration_secs_listener(listen)
        old = state
        indices = jax.device_put(np.arange(size, dtype=np.int32), over_the_batch(mesh, size))
        epoch = jax.device_put(np.float32(i + 1), everywhere)
        strong = jax.device_put(batch(size, i + 100, dtype)[0], over_the_batch(mesh, size))
        extra = {"indices": indices, "epoch": epoch, "images_strong": strong}
        if not steps:
            steps[size] = compile_step(method, *placed, extra, state=state, mesh=mesh)
        elif size not in steps:
            steps[size] = steps[sizes[0]].for_batch(size)
        state, values = steps[size](state, *placed, key, extra)
        jax.monitoring.unregister_event_duration_listener(listen)
        owned = [old[program.name] for program in method.programs()]
        donated &= all(leaf.is_deleted() for leaf in jax.tree.leaves(owned))
        metrics.append(jax.device_get(values))
        compilations.append(seen)
    return Run(method, before, jax.device_get(state), metrics, compilations, donated)


# One of each kind of method; heads, losses, decoders and objectives have tests of their own.
USUAL = {"contsup R1E", "block_kd"}
# The last, smaller batch is a compilation more: it is tried where the loss depends on the batch, and once else.
SMALLER = {
    "end_to_end", "contsup R0", "contsup E contrast", "contsup decoder contrast", "rkd", "crd", "sp",
    "block_kd lightweight",
}  # fmt: skip
assert METHODS.keys() >= USUAL | SMALLER


def usually(name: str) -> Any:
    return pytest.param(name, id=name, marks=() if name in USUAL else pytest.mark.exhaustive)


@pytest.fixture(params=map(usually, METHODS), scope="module")
def one(request) -> Iterator[Run]:
    yield run(METHODS[request.param], 1, SIZES if request.param in SMALLER else SIZES[:2])
    jax.clear_caches()


def test_programs_read_known_tensors_and_own_the_state(one):
    assert isinstance(one.method, Method)
    programs = one.method.programs()
    frozen = {owner(path) for program in programs for path in program.frozen}
    assert {program.name for program in programs} | frozen == set(one.before)
    there = set(FROM_THE_LOOP)
    for program in programs:
        assert set(program.reads) <= there
        assert all(isinstance(subtree(one.before, path), dict) for path in program.frozen)
        there.update(program.writes)
    assert there == FROM_THE_LOOP | {name for program in programs for name in program.reads}


def has_no_effect(path: Any) -> bool:
    """True for the bias of the keys of self-attention: it adds the same number to all scores of a query."""
    return jax.tree_util.keystr(path).endswith("['key']['bias']")


def test_every_parameter_learns_and_every_loss_is_finite(one):
    for name, part in one.after.items():
        moved = jax.tree.map_with_path(
            lambda path, a, b: has_no_effect(path) or bool((a != b).any()), one.before[name]["params"], part["params"]
        )
        if "opt_state" in part:
            if one.method is METHODS["simkd"]:  # its logits are those of the teacher's classifier
                del moved["student"]["head"]
            unused = moved.get("teacher0", {}).pop("stage3_to_student", {})  # of FCFD
            assert not any(jax.tree.leaves(unused))
            assert all(jax.tree.leaves(moved)), f"parameters of {name} did not change: {moved}"
    for metrics in one.metrics:
        assert all(np.isfinite(value) for values in metrics.values() for value in values.values())


def test_a_teacher_is_not_changed(one):
    owned = {program.name for program in one.method.programs()}
    for name, part in one.after.items():
        if name not in owned:
            jax.tree.map(np.testing.assert_array_equal, part, one.before[name])


def test_programs_that_train_own_an_optimizer_state(one):
    assert {program.name for program in one.method.programs() if program.trains} == {
        name for name, part in one.after.items() if "opt_state" in part
    }


def test_the_deployed_program_trains_and_measures_accuracy(one):
    name = one.method.deployed_program
    if name is not None:
        assert name in {program.name for program in one.method.programs() if program.trains}
        assert "accuracy" in one.metrics[0][name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("end_to_end", "network"),
        ("contsup R0", "module03"),
        ("contsup early exit", "module01"),
        ("contsup ensemble", None),
        ("hpff", "module02"),
        ("block_kd", "student"),
        ("simkd", None),
        ("teacher", "module02"),
    ],
)
def test_the_program_whose_accuracy_is_that_of_the_deployed_network(name, expected):
    assert METHODS[name].deployed_program == expected


def test_each_shape_is_compiled_once(one):
    first, second, *last_batch = one.compilations
    assert first
    assert not second
    assert all(len(smaller) <= len(first) for smaller in last_batch)


def test_the_state_is_donated(one):
    assert one.donated


def test_deployed_parameters_are_those_that_the_logits_depend_on(one):
    images, _ = batch(4, 9)
    logits = jax.jit(one.method.logits)
    expected = logits(one.after, images)
    assert expected.shape == (4, 10)
    deployed = {id(leaf) for leaf in jax.tree.leaves(one.method.deployed(one.after))}
    for name, part in one.after.items():
        for path, leaf in jax.tree.leaves_with_path(part["params"]):
            if has_no_effect(path):
                continue
            changed = jax.tree.map(lambda x, leaf=leaf: x * 1.5 + 0.5 if x is leaf else x, one.after)
            same = bool((logits(changed, images) == expected).all())
            assert same == (id(leaf) not in deployed), (name, jax.tree_util.keystr(path))


# In float64: in float32 rounding can move an activation across the kink of ReLU.
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["end_to_end", "contsup R0", "contsup R1E", "momentum R1E", "block_kd"])
@jax.numpy_dtype_promotion("standard")
def test_eight_devices_give_the_results_of_one(name):
    with jax.enable_x64(True):
        one, eight = (run(METHODS[name], devices, (16,), np.float64) for devices in (1, 8))
    for a, b in zip(jax.tree.leaves(one.metrics), jax.tree.leaves(eight.metrics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    for (path, a), b in zip(jax.tree.leaves_with_path(one.after), jax.tree.leaves(eight.after), strict=True):
        assert a.dtype == b.dtype != np.float32
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10, err_msg=jax.tree_util.keystr(path))


@pytest.mark.exhaustive
def test_one_module_is_end_to_end():
    """One step of K=1 and one of end-to-end training from the same state."""
    local, whole = METHODS["contsup K=1"], METHODS["end_to_end"]
    images, labels = map(jnp.asarray, batch(16, 0))
    state = local.init(jax.random.key(0), images)
    of_module = of_block(state["module00"], "blocks")
    blocks = by_block({name: of_block(of_module, str(i)) for i, name in enumerate(NETWORK.names)})
    start = jax.tree.map(jnp.array, {"network": new_part(blocks, OPTIMIZER)})
    after_local, local_metrics = compile_step(local, images, labels)(state, jnp.array(images), jnp.array(labels), KEY)
    after_whole, whole_metrics = compile_step(whole, images, labels)(start, images, labels, KEY)
    assert local_metrics["module00"]["loss"] == whole_metrics["network"]["loss"]
    ours, theirs = after_local["module00"]["params"]["blocks"], after_whole["network"]["params"]
    for i, name in enumerate(NETWORK.names):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours[str(i)], theirs[name])
