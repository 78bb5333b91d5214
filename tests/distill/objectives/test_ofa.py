"""OFA-KD: its loss by numpy, its exits, and the networks that it takes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import OBJECTIVES, Distillation, EvaluationBatch, Objective, Pair, Teacher, output_shapes
from kd_local.distill.objectives.combined import Combined
from kd_local.distill.objectives.ofa import OFA
from kd_local.distill.ofa_exits import PatchMerging, exit_after
from kd_local.models import create, resnet
from kd_local.models.class_token import class_token_transformer
from kd_local.models.vision_transformer import vision_transformer
from kd_local.networks import Network
from kd_local.parallel import compile_step
from tests.support import tiny

CNN = resnet(8, classes=5, widths=(4, 4, 6, 8))
TOKENS = class_token_transformer(classes=5, width=12, heads=3, depth=4, patch_size=4)
MAPS = vision_transformer(classes=5, width=8, heads=2, depth=4, patch_size=2)
LIKE = jax.ShapeDtypeStruct((6, 8, 8, 3), jnp.float32)
PAIRS = [(CNN, TOKENS), (TOKENS, CNN), (MAPS, CNN), (TOKENS, MAPS)]


def method(student: Network, teacher: Network, objective: Objective = OFA(), **options) -> Distillation:  # noqa: B008
    of = Teacher(teacher, tiny.variables(teacher, 3))
    return Distillation(student, (of,), objective, optax.sgd(0.1), **options)


def unused(stage: int, x: jax.Array, until: int | None = None) -> jax.Array:
    raise AssertionError("OFA uses no blocks of the teacher")


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def ofa(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, eps: float, temperature: float) -> float:
    """-sum ((p + y)^eps - y) log q, the mean over the batch."""
    p, log_q = np.exp(log_softmax(teacher / temperature)), log_softmax(student / temperature)
    y = np.eye(p.shape[1])[labels]
    return -(((p + y) ** eps - y) * log_q).sum(axis=1).mean()


@pytest.mark.exhaustive
@pytest.mark.parametrize("student", [CNN, TOKENS])
def test_a_step_by_its_equation(student):
    objective = OFA(
        ce_weight=0.5, logits_weight=0.7, exits_weight=0.3, stages=(3, 1), eps=(1.25, 2.0, 1.5), temperature=2.0
    )
    distillation = method(student, resnet(8, classes=5, widths=(4, 5, 7, 10)), objective)
    images, labels = tiny.batch()
    state = distillation.init(jax.random.key(0), LIKE)
    state["student"]["params"]["student"] = tiny.variables(student)["params"]  # a transformer's logits start at zero
    state = jax.tree.map(jnp.asarray, state)
    own = {kind: state["student"][kind].get("teacher0", {}) for kind in ("params", "batch_stats")}
    outputs, _ = student.features(distillation.network_variables(state), images, train=True)
    logits = [outputs["head"]]
    for stage in (3, 1):
        x, behind = outputs[student.stages[stage]], len(student.stages) - 1 - stage
        module = exit_after(student, x.shape, behind=behind, width=10 if student is CNN else 12, classes=5)
        of_exit = {kind: own[kind][f"exit{stage}"] for kind in own if f"exit{stage}" in own[kind]}
        logits.append(module.apply(of_exit, x, train=True, mutable=["batch_stats"])[0])
    student_logits, *of_exits = map(np.asarray, logits)
    target = np.asarray(distillation.teacher_logits(state, images)["teacher0"])
    terms = [
        -log_softmax(student_logits)[np.arange(6), np.asarray(labels)].mean(),
        ofa(student_logits, target, labels, 1.5, 2.0),
        sum(ofa(x, target, labels, eps, 2.0) for x, eps in zip(of_exits, (1.25, 2.0), strict=True)),
    ]
    state, metrics = compile_step(distillation, images, labels, state=state)(state, images, labels, jax.random.key(1))
    found = [metrics["student"][name] for name in ("cross_entropy", "logits", "exits", "loss")]
    np.testing.assert_allclose(found, [*terms, 0.5 * terms[0] + 0.7 * terms[1] + 0.3 * terms[2]], rtol=2e-5)
    assert {"exit1_accuracy", "exit3_accuracy"} < set(metrics["student"])
    assert set(distillation.exits(state, images)) == {"exit1", "exit3"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("student", "teacher"), [PAIRS[0], *(pytest.param(*pair, marks=pytest.mark.exhaustive) for pair in PAIRS[1:])]
)
def test_families_of_student_and_teacher(student, teacher):
    distillation = method(student, teacher)
    state = jax.eval_shape(partial(distillation.init, images=LIKE), jax.random.key(0))
    exits = state["student"]["params"]["teacher0"]
    assert list(exits) == [f"exit{i}" for i in range(1, len(student.stages))]
    labels = jax.ShapeDtypeStruct((6,), jnp.int32)
    program = distillation.programs()[0]
    _, _, metrics = jax.eval_shape(
        program.function, state["student"], (state["teacher0"],), (LIKE, labels), jax.random.key(0), jnp.zeros(0)
    )
    assert metrics["exits"].shape == ()


def test_a_teacher_without_batch_statistics_needs_no_such_collection():
    """Weights from a file of a transformer have parameters only."""
    variables = {"params": tiny.variables(TOKENS)["params"]}
    distillation = Distillation(CNN, (Teacher(TOKENS, variables),), OFA(), optax.sgd(0.1))
    state = jax.eval_shape(partial(distillation.init, images=LIKE), jax.random.key(0))
    assert state["teacher0"]["batch_stats"] == {}


def test_exits_of_convolutions_reach_the_last_stage():
    """4 - i blocks behind stage i, which double the channels up to the width; a 1x1 convolution behind the last."""
    student, teacher = create("resnet18", classes=7), create("vit_ti_16", classes=7)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = {network: output_shapes(network, images) for network in (student, teacher, CNN)}
    batch = EvaluationBatch(Pair(student, teacher), shapes[student], shapes[teacher], unused)
    params = jax.eval_shape(partial(OFA().init, batch=batch), jax.random.key(0))["params"]
    widths = {
        name: [exit_[f"block{i}"]["pointwise1"]["conv"]["kernel"].shape[-1] for i in range(len(exit_) - 1)]
        for name, exit_ in params.items()
        if name != "exit4"
    }
    assert widths == {"exit1": [128, 256, 512], "exit2": [256, 512], "exit3": [512]}
    assert params["exit4"]["conv"]["kernel"].shape == (1, 1, 512, 512)
    # The teacher is wider than the student.
    batch = EvaluationBatch(Pair(CNN, teacher), shapes[CNN], shapes[teacher], unused)
    params = jax.eval_shape(partial(OFA(stages=(3,)).init, batch=batch), jax.random.key(0))["params"]
    assert params["exit3"]["linear"]["kernel"].shape == (192, 5)


@pytest.mark.parametrize(
    ("grid", "merges"), [(1, 0), (4, 0), (7, 0), (8, 0), (13, 0), (14, 1), (16, 1), (26, 1), (28, 2), (32, 2), (56, 3)]
)
def test_patches_are_merged_to_about_7x7(grid, merges):
    for student, shape in ((MAPS, (2, grid, grid, 8)), (TOKENS, (2, 1, 1 + grid**2, 8))):
        found = exit_after(student, shape, behind=2, width=8, classes=5)
        assert (found.merges, found.blocks, found.class_tokens) == (merges, 2, student.class_tokens)
    assert exit_after(MAPS, (2, grid, grid, 8), behind=0, width=8, classes=5).blocks == 1


def test_merging_concatenates_neighbours_by_columns():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    merging = PatchMerging(4, gelu=False)
    variables = {"params": {"norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}, "reduction": {"kernel": jnp.eye(4)}}}
    found = merging.apply(variables, x)[0]
    for row, column in ((0, 0), (0, 1), (1, 1)):
        window = np.asarray(x)[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, 0]
        expected = window.T.ravel()  # (0, 0), (1, 0), (0, 1), (1, 1)
        expected = (expected - expected.mean()) / np.sqrt(expected.var() + 1e-5)
        np.testing.assert_allclose(found[row, column], expected, rtol=1e-5)


@pytest.mark.exhaustive
def test_a_token_exit_reads_the_class_token_or_the_mean():
    """The logits are a linear map of the class token, or of the patches' mean, if the blocks change nothing."""
    random = np.random.default_rng(0)
    for student, shape in ((TOKENS, (3, 1, 5, 8)), (MAPS, (3, 2, 2, 8))):
        x = jnp.asarray(random.standard_normal(shape), jnp.float32)
        module = exit_after(student, shape, behind=1, width=8, classes=5)
        params = jax.tree.map(lambda p: p, module.init(jax.random.key(0), x, train=True)["params"])
        for name in ("projection", "linear2"):
            params["block0"][name] = jax.tree.map(jnp.zeros_like, params["block0"][name])
        pooled = x[:, 0, 0] if student is TOKENS else x.reshape(3, -1, 8).mean(axis=1)
        expected = pooled @ params["linear"]["kernel"]
        np.testing.assert_allclose(module.apply({"params": params}, x, train=True), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.exhaustive
def test_only_the_teachers_logits_are_used():
    """The step gives the same numbers if it reads the teacher's logits as a tensor."""
    whole, cached = (method(CNN, TOKENS, cached=cached) for cached in (False, True))
    images, labels = tiny.batch()
    state = whole.init(jax.random.key(0), LIKE)
    logits = whole.teacher_logits(state, images)["teacher0"]
    key = jax.random.key(1)
    _, expected = compile_step(whole, images, labels)(whole.init(jax.random.key(0), LIKE), images, labels, key)
    extra = {"teacher0_logits": logits}
    step = compile_step(cached, images, labels, extra)
    _, found = step(cached.init(jax.random.key(0), LIKE), images, labels, key, extra)
    for name, value in expected["student"].items():
        np.testing.assert_allclose(found["student"][name], value, rtol=1e-5, err_msg=name)


def test_without_their_weight_there_are_no_exits():
    distillation = method(CNN, TOKENS, OFA(exits_weight=0.0))
    state = jax.eval_shape(partial(distillation.init, images=LIKE), jax.random.key(0))
    assert not state["student"]["params"].get("teacher0")


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (OFA(stages=(1, 4)), "stages has 4: use all, or numbers from 1 to 3, the student's stages"),
        (OFA(eps=(1.0, 2.0)), "eps has 2 numbers for 3 exits and the student's logits: use 1 or 4"),
        (OFA(stages=(2,), eps=(1.0,) * 4), "eps has 4 numbers for 1 exits and the student's logits: use 1 or 2"),
    ],
)
def test_stages_and_exponents_are_refused_before_compilation(objective, text):
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(partial(method(CNN, TOKENS, objective).init, images=LIKE), jax.random.key(0))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"eps": ()}, r"eps is \(\): use 1 or more numbers"),
        ({"eps": (0.0,)}, r"eps is \(0.0,\): use 1 or more numbers .* each a number in \(0, 100\]"),
        ({"stages": (2, 2)}, r"stages is \(2, 2\): use all, or the numbers of some stages"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"exits_weight": -1.0}, "exits_weight is -1.0"),
        ({"exits_weight": 0.0, "stages": (2,)}, "stages is .2,., but exits_weight is 0: leave it out"),
        (
            {"exits_weight": 0.0, "logits_weight": 0.0, "eps": (2.0,)},
            "eps is .* but logits_weight and exits_weight are",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, text):
    with pytest.raises(ValueError, match=text):
        OFA(**numbers)


@pytest.mark.parametrize(
    ("student", "shape", "text"),
    [
        (
            MAPS,
            (2, 15, 14, 8),
            "grid of 15x14 patches cannot be merged by 2x2 1 times: .* multiples of 2, such as 14x14",
        ),
        (MAPS, (2, 28, 30, 8), "a grid of 28x30 patches cannot be merged by 2x2 2 times: .* multiples of 4"),
        (TOKENS, (2, 1, 1 + 12, 8), "12 patches after 1 class token.* form no square.*: use square images"),
        (MAPS, (2, 4, 4, 10), "features of 10 channels and 0 class token.*: the exit's blocks need a multiple of 4"),
        (TOKENS, (2, 1, 1 + 14**2, 12), "features of 12 channels and 1 class token.* for blocks of 8"),
    ],
)
def test_features_that_do_not_fit_are_refused(student, shape, text):
    with pytest.raises(ValueError, match=text):
        exit_after(student, shape, behind=1, width=8, classes=5)


def test_a_combination_takes_tokens_if_each_objective_of_features_does():
    kd, at = OBJECTIVES["kd"](), OBJECTIVES["at"]()
    assert method(TOKENS, CNN, Combined(((kd, 1.0), (OFA(), 1.0))), cached=True)
    with pytest.raises(ValueError, match=r"^Combined\(OFA, AT\) needs maps"):
        method(TOKENS, CNN, Combined(((OFA(), 1.0), (at, 1.0))))


def test_the_error_for_features_lists_the_objectives_that_fit():
    """The list is that of the registry."""
    for student, teacher, takes_ofa in ((TOKENS, CNN, True), (CNN, TOKENS, True)):
        with pytest.raises(ValueError, match=r"^AT needs maps between .* 'stem' \(TokenEmbedding\)") as error:
            Distillation(student, (Teacher(teacher, {}),), OBJECTIVES["at"](), optax.sgd(0.1))
        listed = str(error.value).rpartition("networks: ")[2].split(", ")
        assert {"end_to_end", "kd", "dkd"} < set(listed)
        assert ("ofa" in listed) == takes_ofa
        for name in listed[1:]:
            options = {"negatives": 8} if name == "crd" else {}
            Distillation(student, (Teacher(teacher, {}),), OBJECTIVES[name](**options), optax.sgd(0.1))
