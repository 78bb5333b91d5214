import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.models import create, imagenet_resnet
from kd_local.models.ends import Classifier, Stem
from kd_local.models.imagenet_resnet import Bottleneck
from kd_local.models.resnet import BasicBlock
from kd_local.networks import Network

pytestmark = pytest.mark.exhaustive


def count(network) -> int:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.usually("resnet18-1000-11689512", "resnet50-1000-25557032")
@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("resnet101", 1000, 44_549_160),
        ("resnet18_cifar", 100, 11_220_132),
        ("resnet50_cifar", 100, 23_705_252),
    ],
)
def test_published_numbers_of_parameters(name, classes, parameters):
    assert count(create(name, classes=classes)) == parameters


@pytest.mark.parametrize(
    ("name", "size", "sizes"), [("resnet18", 224, [112, 56, 28, 14, 7]), ("resnet18_cifar", 32, [32, 32, 16, 8, 4])]
)
def test_sizes_of_features_after_the_stem_and_each_stage(name, size, sizes):
    network = create(name, classes=2)
    assert [stage.split("/")[0] for stage in network.stages] == ["stem", "stage1", "stage2", "stage3", "stage4"]
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    features, _ = jax.eval_shape(lambda *inputs: network.features(*inputs, train=False), variables, images)
    assert [features[stage].shape[1] for stage in network.stages] == sizes


@pytest.mark.parametrize("block", [BasicBlock(8), Bottleneck(8)])
def test_pooling_comes_first(block):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    variables = block.init(jax.random.key(1), x, train=False)
    edge = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = [edge[:, i : i + 7 : 2, j : j + 7 : 2] for i in range(3) for j in range(3)]
    expected = block.apply(variables, jnp.asarray(np.max(windows, axis=0)), train=False)
    pooled = block.clone(pool_first=True).apply(variables, x, train=False)
    assert pooled.shape == (2, 4, 4, 8)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.exhaustive
def test_a_gradient_through_bottlenecks_is_finite_and_reaches_every_weight():
    network = Network.of(
        {
            "stem": Stem(4, kernel_size=7, stride=2),
            "stage1/0": Bottleneck(16, pool_first=True),
            "stage1/1": Bottleneck(16),
            "stage2/0": Bottleneck(32, stride=2),
            "head": Classifier(3),
        }
    )
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = network.init(jax.random.key(0), images)
    assert variables["params"]["stage1/0"]["conv2"]["conv"]["kernel"].shape == (3, 3, 4, 4)
    assert "projection" not in variables["params"]["stage1/1"]

    @jax.jit
    def gradient(params):
        logits = lambda params: network.apply({**variables, "params": params}, images, train=True)[0]
        return jax.grad(lambda params: -jax.nn.log_softmax(logits(params))[:, 0].mean())(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert jnp.isfinite(leaf).all() and leaf.any(), path


def test_unknown_depths_are_refused():
    with pytest.raises(ValueError, match="unknown depth of an ImageNet ResNet 20: use 18, 34, 50, 101 or 152"):
        imagenet_resnet(20, classes=2)
