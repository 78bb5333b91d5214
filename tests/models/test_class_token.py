"""Vision transformers with a class token, and the ImageNet forms of VGG and ShuffleNetV2: sizes, and where they fit.

Their numbers are compared in tests/interop/test_golden_torchvision.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_local.distill import KD, OBJECTIVES, Distillation, Teacher, TeacherRule
from kd_local.distill.deployed import deployed_network
from kd_local.local import ContSup, cut
from kd_local.models import create, resnet
from kd_local.models.class_token import class_token_transformer
from kd_local.parallel import compile_step
from tests.support import tiny
from tests.support.taught import locally_taught

pytestmark = pytest.mark.exhaustive

TOKENS = class_token_transformer(classes=4, width=12, heads=3, depth=4, patch_size=4)
MAPS = tiny.network()
CNN = resnet(8, classes=4, widths=(4, 4, 4, 4))
IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


# The numbers in the documentation of torchvision; of DeiT in Touvron et al. (arXiv 2012.12877).
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_ti_16", 5_717_416),
        ("vit_s_16", 22_050_664),
        ("vit_b_16", 86_567_656),
        ("vit_b_32", 88_224_232),
        ("vgg11_bn", 132_868_840),
        ("vgg13_bn", 133_053_736),
        ("vgg16_bn", 138_365_992),
        ("vgg19_bn", 143_678_248),
        ("shufflenet_v2_x0_5", 1_366_792),
        ("shufflenet_v2_x1_0", 2_278_604),
        ("shufflenet_v2_x1_5", 3_503_624),
        ("shufflenet_v2_x2_0", 7_393_996),
    ],
)
def test_published_numbers_of_parameters(name, parameters):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    network = create(name, classes=1000)
    shapes = jax.eval_shape(lambda: network.init(
        jax.random.key(0), images))  # fmt: skip
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == parameters


def test_the_class_token_is_the_first_position():
    variables = tiny.variables(TOKENS)
    images = tiny.batch(2)[0]
    features, _ = TOKENS.features(variables, images, train=False)
    stem = variables["params"]["stem"]
    assert features["stem"].shape == (2, 1, 5, 12)
    expected = stem["class_token"][0, 0] + stem["positions"][0, 0]
    np.testing.assert_allclose(features["stem"][:, 0, 0], np.stack([expected] * 2), rtol=1e-6)
    # The logits depend on the class token alone.
    head, own = TOKENS["head"], {"params": variables["params"]["head"]}
    last = features[TOKENS.names[-2]]
    changed = last.at[:, :, 1:].set(0)
    logits = [head.apply(own, x, train=False) for x in (last, changed)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


def test_images_that_the_patch_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="images of 9x8 do not divide into patches of 4x4"):
        jax.eval_shape(TOKENS.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 9, 8, 3), jnp.float32))


def test_logits_are_taught_and_learnt_without_maps():
    for student, network in ((MAPS, TOKENS), (TOKENS, MAPS)):
        method = Distillation(student, (Teacher(network, tiny.variables(network)),), KD(), optax.sgd(0.1))
        shapes = jax.eval_shape(partial(method.init, images=IMAGES), jax.random.key(0))
        assert method.logits and shapes["teacher0"]["params"]


@pytest.mark.parametrize("objective", [OBJECTIVES["at"](), OBJECTIVES["fitnet"]()])
def test_objectives_of_features_refuse_networks_without_maps(objective):
    for student, network in ((MAPS, TOKENS), (TOKENS, MAPS)):
        with pytest.raises(ValueError, match=rf"^{type(objective).__name__} needs maps .* 'stem' \(TokenEmbedding\)"):
            Distillation(student, (Teacher(network, {}),), objective, optax.sgd(0.1))


def test_local_learning_refuses_networks_without_maps():
    rule = TeacherRule(Teacher(MAPS, tiny.variables(MAPS)), (8, 8, 3))
    with_contexts = cut(TOKENS, 2, classes=4, auxiliary=rule, context="R1E")
    for cut_network in (cut(TOKENS, 2, classes=4), with_contexts):
        with pytest.raises(ValueError, match="local learning needs maps"):
            ContSup(cut_network, optax.sgd(0.1)).init(jax.random.key(0), IMAGES)
    whole = ContSup(cut(TOKENS, 1, classes=4), optax.sgd(0.1))
    assert jax.eval_shape(partial(whole.init, images=IMAGES), jax.random.key(0))
    without = deployed_network(whole)
    with pytest.raises(ValueError, match="local distillation needs maps or tokens .* 'deployed/0'"):
        TeacherRule(Teacher(without, {}), (8, 8, 3))


@pytest.mark.parametrize(("student", "teacher"), [(TOKENS, CNN), (CNN, TOKENS), (TOKENS, TOKENS)])
def test_local_distillation_with_class_tokens(student, teacher):
    """Each module of the student learns through the teacher, and every connector gets a gradient."""
    method = locally_taught(student, Teacher(teacher, tiny.variables(teacher)), (8, 8, 3), optax.sgd(0.1))
    images, labels = tiny.batch(4, classes=4)
    state = method.init(jax.random.key(0), images)
    before = jax.tree.map(np.array, state)
    after, metrics = compile_step(method, images, labels, state=state)(state, images, labels, jax.random.key(1))
    stones = [name for name, part in before.items() if name != "teacher"]
    assert len(stones) == len(student.stages) - 1
    for name in stones:
        assert np.isfinite(metrics[name]["loss"])
        old, new = (part[name]["params"]["head"] for part in (before, after))
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), old, new)))
