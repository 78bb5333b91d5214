"""FCFD against a composition of slices of the two networks, by hand."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import FCFD, Distillation, Pair, Renormalisation, Teacher, TrainingBatch, outputs
from kd_local.distill.mixture_paths import follow, mixture_paths
from kd_local.distill.staged import StagedNetwork
from kd_local.distill.teacher import remaining_blocks
from kd_local.models import create, resnet, wide_resnet
from kd_local.networks import apply_block, of_block
from kd_local.parallel import plan_step

STUDENT = resnet(8, classes=5, widths=(4, 4, 6, 8))
TEACHER = resnet(8, classes=5, widths=(4, 5, 7, 9))
LIKE = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
IMAGES = jax.random.normal(jax.random.key(2), LIKE.shape)
LABELS = jnp.arange(4, dtype=jnp.int32)
SLICES = {0: slice(0, 1), 1: slice(1, 2), 2: slice(2, 3), 3: slice(3, 4), "head": slice(4, 5)}
FACTORS = {"ce_weight": 0.7, "kd_weight": 1.1, "mixture_weight": 0.3, "feature_weight": 2.0, "temperature": 3.0}


def method(objective, student=STUDENT, teacher=TEACHER, **options):
    variables = teacher.init(jax.random.key(3), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    moved = jax.tree.map(lambda x: x + 0.1, variables["batch_stats"])
    return Distillation(
        student, (Teacher(teacher, {**variables, "batch_stats": moved}, **options),), objective, optax.sgd(0.1)
    )


def prepared(objective, epoch=5.0):
    """`(variables of the student, of the objective, batch)`."""
    distillation = method(objective)
    state = distillation.init(jax.random.key(0), LIKE)
    own, of_objective = of_block(state["student"], "student"), of_block(state["student"], "teacher0")
    of_teacher = state["teacher0"]
    batch = TrainingBatch(
        pair=Pair(STUDENT, TEACHER),
        student=outputs(STUDENT, own, IMAGES, train=True)[0],
        teacher=outputs(TEACHER, of_teacher, IMAGES, train=False)[0],
        remaining_blocks=partial(remaining_blocks, TEACHER, of_teacher),
        labels=LABELS,
        indices=jnp.zeros(4, jnp.int32),
        epoch=jnp.float32(epoch),
        rng=jax.random.key(1),
        student_params=own["params"],
        teacher_variables=of_teacher,
        teacher_images=IMAGES,
    )
    return own, of_objective, batch


def kl(logits, target, t):
    p, q = jax.nn.log_softmax(target / t), jax.nn.log_softmax(logits / t)
    return t**2 * (jnp.exp(p) * (p - q)).sum(axis=1).mean()


@pytest.mark.long
@pytest.mark.usually("running")
@pytest.mark.parametrize("mode", ["running", "batch"])
def test_the_loss_of_all_paths_by_hand(mode):
    objective = FCFD(**FACTORS, sampled=4, teacher_batch_norm=mode)
    own, of_objective, batch = prepared(objective)
    bridges, of_teacher = objective.step(of_objective, batch).bridges, batch.teacher_variables
    trains = mode == "batch"

    def stage(who, i, x):
        network, variables, train = (TEACHER, of_teacher, trains) if who == "0" else (STUDENT, own, True)
        part = network[SLICES[i]]
        return part.apply(part.select(variables), x, train=train)[0]

    def bridge(i, direction, x):
        name = f"stage{i}_to_{direction}"
        return apply_block(bridges[name], of_block(of_objective, name), x, train=True)[0]

    logits, maps = {}, {}
    for path in ("0000", "1111", "0011", "0001", "1100", "1110"):
        x = IMAGES
        for i, who in enumerate(path):
            if i and path[i - 1] != who:
                x = bridge(i - 1, "teacher" if who == "0" else "student", x)
            x = stage(who, i, x)
            maps[path, i] = x
        logits[path] = stage(path[-1], "head", x)
    in_its_space = {(path, i): maps[path, i] for path in ("1100", "1110") for i in range(path.index("0"), 4)}
    in_its_space |= {("1111", i): bridge(i, "teacher", maps["1111", i]) for i in (1, 2, 3)}
    squares = 0.0
    for (_, i), x in in_its_space.items():
        squares += jnp.square(x - maps["0000", i]).mean()
        if i == 3:
            pooled = [jnp.maximum(each, 0).mean(axis=1).mean(axis=1) for each in (x, maps["0000", 3])]
            squares += jnp.square(pooled[0] - pooled[1]).mean()
    mixtures = sum(kl(logits[path], logits["0000"], 3.0) for path in ("0011", "0001", "1100", "1110"))
    cross_entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits["1111"]), LABELS[:, None], axis=1).mean()
    found = objective.loss(of_objective, batch)
    np.testing.assert_allclose(found.task, 0.7 * cross_entropy, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["mixtures"], mixtures, rtol=1e-4)
    np.testing.assert_allclose(found.metrics["features"], squares, rtol=1e-4)
    student = kl(logits["1111"], logits["0000"], 3.0)
    np.testing.assert_allclose(found.distillation, 1.1 * student + 0.3 * mixtures + 2.0 * 5 / 20 * squares, rtol=1e-4)
    after, before = found.batch_stats, of_objective["batch_stats"]
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert ("teacher" in after, "1100" in after) == (trains, trains)
    # Running statistics of mixtures start at zero: a tenth of the batch's.
    entering = bridge(1, "student", maps["0000", 1])
    kernel = own["params"]["stage2/0"]["projection"]["conv"]["kernel"][0, 0]
    mean = (entering[:, ::2, ::2] @ kernel).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(after["0011"]["stage2/0"]["projection"]["norm"]["mean"], 0.1 * mean, atol=1e-6)


def gradients(path):
    """The student's blocks and the bridges that get a gradient from the logits of a path."""
    objective = FCFD()
    own, of_objective, batch = prepared(objective)

    def total(params, bridges, teacher):
        student = outputs(STUDENT, {**own, "params": params}, IMAGES, train=True)[0]
        with_params = replace(batch, student=student, student_params=params, teacher_variables=teacher)
        variables = {**of_objective, "params": bridges}
        step = objective.step(variables, with_params)
        return follow(path, batch.pair, step.bridges[path.bridge], *step.inputs(path, variables, with_params))[1].sum()

    found = jax.jit(jax.grad(total, argnums=(0, 1)))(own["params"], of_objective["params"], batch.teacher_variables)
    return [name for one in found for name, leaves in one.items() if any(map(np.any, jax.tree.leaves(leaves)))]


@pytest.mark.long
@pytest.mark.usually("0001", "1100")
@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("0011", ["head", "stage2/0", "stage3/0", "stage1_to_student"]),
        ("0001", ["head", "stage3/0", "stage2_to_student"]),
        ("1100", ["stage1/0", "stem", "stage1_to_teacher"]),
        ("1110", ["stage1/0", "stage2/0", "stem", "stage2_to_teacher"]),
    ],
    ids=["0011", "0001", "1100", "1110"],
)
def test_a_path_trains_its_bridge_and_its_stages_of_the_student(path, names):
    (found,) = (one for one in mixture_paths(4) if one.name == path)
    assert sorted(gradients(found)) == sorted(names)


@pytest.mark.exhaustive
def test_no_gradient_reaches_the_teacher():
    objective = FCFD(sampled=4, teacher_batch_norm="batch")
    _, of_objective, batch = prepared(objective)

    def total(teacher):
        return objective.loss(of_objective, replace(batch, teacher_variables=teacher)).total

    found = jax.grad(total)(batch.teacher_variables)
    assert not any(map(np.any, jax.tree.leaves(found)))


def test_two_paths_are_computed_and_the_others_keep_their_statistics():
    _, of_objective, batch = prepared(FCFD())
    before = of_objective["batch_stats"]
    for seed in range(3):
        after = FCFD().loss(of_objective, replace(batch, rng=jax.random.key(seed))).batch_stats
        moved = {
            name
            for name in after
            if any(map(np.any, jax.tree.leaves(jax.tree.map(jnp.not_equal, after[name], before[name]))))
        }
        drawn = moved & {"0011", "0001"}
        assert len(drawn) <= 2
        assert moved - drawn == {f"stage{i}_to_teacher" for i in (1, 2, 3)} | {
            {"0011": "stage1_to_student", "0001": "stage2_to_student"}[name] for name in drawn
        }


@pytest.mark.exhaustive
def test_the_teacher_in_training_mode_reads_its_own_images_and_drifts():
    renormalisation = Renormalisation((2.0,) * 3, (0.5,) * 3)
    distillation = method(FCFD(teacher_batch_norm="batch"), renormalisation=renormalisation)
    state = jax.tree.map(jnp.array, distillation.init(jax.random.key(0), LIKE))
    expected = outputs(TEACHER, state["teacher0"], IMAGES * 2 + 0.5, train=True)[1]
    (program,) = distillation.programs()
    tensors = (IMAGES, LABELS, jnp.float32(1))
    after, _, _ = jax.jit(program.function)(
        state["student"], (state["teacher0"],), tensors, jax.random.key(1), jnp.zeros((0,))
    )
    found = after["batch_stats"]["teacher0"]["teacher"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("teacher", "student", "parameters"),
    [
        ("resnet32x4", "resnet8x4", 1_550_080),
        ("resnet56", "resnet20", 97_216),
        ("wrn_40_2", "wrn_16_2", 387_968),
        ("vgg13", "vgg8", None),
        ("resnet50_cifar", "mobilenetv2_half", None),
        ("vgg13", "mobilenetv2_half", None),
        ("resnet32x4", "shufflenetv1", None),
        ("wrn_40_2", "shufflenetv2", None),
    ],
)
def test_pairs_of_families(teacher, student, parameters):
    """Shapes only: nothing is computed."""
    teacher, student = create(teacher, classes=100), create(student, classes=100)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(teacher.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    distillation = Distillation(student, (Teacher(teacher, variables),), FCFD(), optax.sgd(0.1))
    extra = {"epoch": jax.ShapeDtypeStruct((), jnp.float32)}
    plan = plan_step(distillation, images, jax.ShapeDtypeStruct((2,), jnp.int32), extra)
    parts, _, metrics = plan.calls[0].shapes
    assert set(metrics[0]) == {"loss", "accuracy", "cross_entropy", "distillation", "mixtures", "features"}
    assert jax.tree.structure(parts[0]) == jax.tree.structure(plan.state["student"])
    found = sum(x.size for x in jax.tree.leaves(plan.state["student"]["params"]["teacher0"]))
    if parameters is not None:
        assert found == parameters


@pytest.mark.long
def test_networks_with_other_numbers_of_stages_are_refused():
    with pytest.raises(
        ValueError, match="equal numbers of stages, but the student has 5 and the teacher 4: use another"
    ):
        method(FCFD(), create("vgg8", classes=5)).init(jax.random.key(0), LIKE)


def test_more_paths_than_there_are_are_refused():
    with pytest.raises(ValueError, match="sampled is 5, but networks of 4 stages have 4 mixture paths: use 1 to 4"):
        method(FCFD(sampled=5)).init(jax.random.key(0), LIKE)


def test_networks_without_maps_are_refused():
    with pytest.raises(ValueError, match="FCFD needs maps"):
        method(FCFD(), create("vit_ti_16", classes=5))


def test_an_unknown_teacher_batch_norm_is_refused():
    with pytest.raises(ValueError, match="unknown teacher batch norm 'bach': .*batch"):
        FCFD(teacher_batch_norm="bach")


@pytest.mark.exhaustive
def test_a_wide_resnets_last_features_contain_the_final_normalisation():
    network = wide_resnet(10, 1, classes=5)
    variables = network.init(jax.random.key(0), LIKE)
    found = outputs(network, variables, IMAGES, train=True)[0]
    features = StagedNetwork(network).features(found, variables, train=True)
    head = of_block(variables, "head")["params"]
    np.testing.assert_allclose(jnp.maximum(features[-1], 0).mean(axis=(1, 2)), found.pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features[-1].mean(axis=(0, 1, 2)), head["norm"]["bias"], atol=1e-5)
    assert features[-2] is found.features[-2]
