"""The structure of AugLocal's auxiliary networks: the published table, and the networks that can be copied."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest

from kd_local.local import AugLocal, CutNetwork, cut
from kd_local.local.partition import single_blocks
from kd_local.models import create
from kd_local.models.registry import NAMES

LAYERS = {"resnet32": 16, "resnet110": 55}


@cache
def augmented(name: str, depth: int, pyramidal: bool = True) -> CutNetwork:
    network = create(name, classes=10)
    boundaries = single_blocks(network, LAYERS[name] - depth)
    rule = AugLocal(depth=depth, pyramidal=pyramidal)
    return cut(network, classes=10, boundaries=boundaries, context="R0", auxiliary=rule)


def structure(cut_network: CutNetwork, boundary: int) -> str:
    """The blocks of an auxiliary network: width, and /2 for stride 2."""
    blocks = cut_network.modules[boundary].auxiliary.blocks
    return " ".join(f"{block.features}{'/2' * (block.stride == 2)}" for block in blocks)


def sizes(cut_network: CutNetwork) -> tuple[int, int]:
    """The number of all parameters, and of those in auxiliary networks."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(cut_network.init, jax.random.key(0), images)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    networks = [network for part in variables.values() for network in part["params"].items()]
    return count([params for _, params in networks]), count([params for name, params in networks if name != "blocks"])


@pytest.mark.parametrize(
    ("name", "depth", "depths"),
    [
        ("resnet32", 1, [1] * 14),
        ("resnet32", 2, [2] * 13),
        ("resnet32", 3, [3] * 6 + [2] * 6),
        ("resnet32", 5, [5, 5, 5, 4, 4, 4, 4, 3, 3, 3]),
        ("resnet110", 3, [3] * 25 + [2] * 26),
        ("resnet110", 5, [5] * 12 + [4] * 25 + [3] * 12),
        ("resnet110", 6, [6] * 10 + [5] * 19 + [4] * 19),
    ],
)
def test_published_depths(name, depth, depths):
    cut_network = augmented(name, depth)
    assert [len(module.auxiliary.blocks) for module in cut_network.modules[:-1]] == depths
    assert len(cut_network.modules[-1].names) == depth + 2  # d + 1 blocks and the network's head


@pytest.mark.parametrize(
    ("name", "depth", "boundary", "blocks"),
    [
        ("resnet32", 1, 0, "64/2"),
        ("resnet32", 2, 0, "32/2 64/2"),
        ("resnet32", 2, 5, "32/2 64/2"),
        ("resnet32", 2, 6, "32 64/2"),
        ("resnet32", 2, 12, "64 64"),
        ("resnet32", 3, 0, "16 32/2 64/2"),
        ("resnet32", 3, 5, "32/2 64/2 64"),
        ("resnet32", 3, 11, "64 64"),
        ("resnet32", 5, 0, "16 32/2 32 64/2 64"),
        ("resnet32", 5, 5, "32/2 32 64/2 64"),
        ("resnet110", 3, 0, "16 32/2 64/2"),
        ("resnet110", 3, 18, "32/2 64/2 64"),
        ("resnet110", 6, 0, "16 16 32/2 32 64/2 64"),
    ],
)
def test_published_structures(name, depth, boundary, blocks):
    assert structure(augmented(name, depth), boundary) == blocks


@pytest.mark.parametrize(
    ("depth", "total", "auxiliary"),
    [
        (1, 1_273_318, 806_412),
        (2, 1_807_964, 1_341_058),
        (3, 1_978_514, 1_511_608),
        (5, 2_151_294, 1_684_388),
    ],
)
def test_published_numbers_of_parameters_of_resnet32(depth, total, auxiliary):
    assert sizes(augmented("resnet32", depth)) == (total, auxiliary)


def test_without_pyramid_each_boundary_has_the_same_depth():
    cut_network = augmented("resnet32", 5, pyramidal=False)
    depths = [len(module.auxiliary.blocks) for module in cut_network.modules[:-1]]
    assert depths == [5] * 10


def test_only_a_depth_of_1_has_a_normalised_classifier():
    kinds = {depth: type(augmented("resnet32", depth).modules[0].auxiliary.classifier).__name__ for depth in (1, 2)}
    assert kinds == {1: "NormalisedClassifier", 2: "Classifier"}


# A resnet1202 has the blocks of a resnet110.
@pytest.mark.usually("resnet8", "vit_ti_16", "shufflenetv2", "mobilenetv2_half")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "resnet1202"])
def test_a_network_of_the_zoo_is_copied_or_refused(name):
    network = create(name, classes=7)
    cutting = partial(cut, network, 4, classes=7, context="R0", auxiliary=AugLocal(depth=2))
    if name.startswith("shufflenet"):
        with pytest.raises(ValueError, match=r"AugLocal cannot copy block 'stage.*' \((Shuffle|Split)Unit\) with"):
            cutting()
        return
    cut_network, images = cutting(), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(cut_network.init, jax.random.key(0), images)
    logits = jax.eval_shape(cut_network.head_logits, variables, images)
    assert {module: of.shape for module, of in logits.items()} == {f"module0{i}": (1, 7) for i in range(4)}
