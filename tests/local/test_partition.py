import flax.linen as nn
import pytest

from kd_local.local import (
    balanced_memory,
    check_boundaries,
    equal_layers,
    man_boundaries,
    man_number,
    man_plus_boundaries,
    single_blocks,
)
from kd_local.models import create
from kd_local.networks import Network

RESNET32 = create("resnet32", classes=10)
RESNET110 = create("resnet110", classes=10)


@pytest.mark.parametrize(
    ("network", "modules", "boundaries"),
    [
        (RESNET32, 1, ""),
        (RESNET32, 2, "stage2/1"),
        (RESNET32, 3, "stage1/4 stage2/4"),
        (RESNET32, 4, "stage1/2 stage2/1 stage3/0"),
        (RESNET32, 8, "stage1/0 stage1/2 stage1/4 stage2/1 stage2/3 stage3/0 stage3/2"),
        (RESNET110, 2, "stage2/8"),
        (RESNET110, 3, "stage1/17 stage2/17"),
        (RESNET110, 4, "stage1/11 stage2/7 stage3/3"),
        (RESNET110, 8, "stage1/4 stage1/11 stage2/0 stage2/7 stage2/14 stage3/3 stage3/10"),
        (
            RESNET110,
            16,
            "stage1/1 stage1/4 stage1/7 stage1/10 stage1/13 stage1/16 stage2/1 stage2/4 stage2/7 stage2/11 "
            "stage2/15 stage3/1 stage3/5 stage3/9 stage3/13",
        ),
    ],
)
def test_published_equal_layers(network, modules, boundaries):
    assert equal_layers(network, modules) == tuple(boundaries.split())


@pytest.mark.parametrize(
    ("network", "data", "modules", "boundaries"),
    [
        (RESNET32, "cifar10", 1, ""),
        (RESNET32, "cifar10", 2, "stage1/3"),
        (RESNET32, "svhn_cropped", 4, "stage1/2 stage1/4 stage2/2"),
        (RESNET32, "cifar10", 8, "stage1/1 stage1/2 stage1/3 stage2/1 stage2/2 stage3/1 stage3/2"),
        (RESNET110, "cifar10", 3, "stage1/9 stage2/2"),
        (RESNET110, "stl10", 3, "stage1/8 stage2/1"),
        (RESNET110, "stl10", 4, "stage1/6 stage1/14 stage2/8"),
    ],
)
def test_published_memory_balance(network, data, modules, boundaries):
    assert balanced_memory(network, modules, data=data) == tuple(boundaries.split())


def test_unpublished_memory_balance_is_refused():
    with pytest.raises(ValueError, match="known for 3 modules of this network: use 2, 4, 8, 16 modules"):
        balanced_memory(RESNET32, 3)
    with pytest.raises(ValueError, match="known for resnet32 and resnet110 only"):
        balanced_memory(create("resnet20", classes=10), 2)


def test_resnet32_in_sixteen_modules_has_one_block_per_module_and_two_in_the_last():
    assert equal_layers(RESNET32, 16) == RESNET32.names[:-2]


def test_other_networks_are_cut_at_the_nearest_number_of_layers():
    # ResNet-20: stem 1, nine blocks of 2, head 1: 20 layers; after block i of stage s, 1 + 2 * (3 (s-1) + i + 1).
    network = create("resnet20", classes=10)
    assert equal_layers(network, 2) == ("stage2/0",)  # 9 of 10 wanted, stage2/1 would be 11: the earlier one is chosen
    assert equal_layers(network, 4) == ("stage1/1", "stage2/0", "stage3/0")  # 5 of 5, 9 of 10, 15 of 15
    # The table is for the layers of ResNet-32, not for its width.
    assert equal_layers(create("resnet32x4", classes=10), 4) == equal_layers(RESNET32, 4)


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet32", "resnet56", "resnet110"])
def test_every_number_of_modules_up_to_the_number_of_blocks(name):
    network = create(name, classes=10)
    for modules in range(1, len(network) + 1):
        boundaries = equal_layers(network, modules)
        assert len(boundaries) == modules - 1
        assert check_boundaries(network, boundaries) == boundaries
    assert equal_layers(network, len(network)) == network.names[:-1]


def test_blocks_without_a_number_of_layers_count_as_one():
    network = Network.of({name: nn.Dense(3) for name in "abcdef"})
    assert equal_layers(network, 3) == ("b", "d")


@pytest.mark.parametrize("modules", [0, -1, 18])
def test_too_few_or_too_many_modules_are_refused(modules):
    with pytest.raises(ValueError, match=f"^{modules} modules for a network of 17 blocks: use 1 to 17$"):
        equal_layers(RESNET32, modules)


def test_bad_boundaries_are_refused():
    with pytest.raises(ValueError, match=r"unknown boundary 'stage1/5': use stem, .*\(nearest: stage1/4\)"):
        check_boundaries(RESNET32, ["stem", "stage1/5"])
    with pytest.raises(ValueError, match="unknown boundary 'head'"):
        check_boundaries(RESNET32, ["head"])
    with pytest.raises(ValueError, match="are repeated or not in the network.s order: use stem, stage2/0"):
        check_boundaries(RESNET32, ["stage2/0", "stem", "stem"])


def test_boundaries_of_man_have_the_stem_in_the_first_module():
    assert man_boundaries(RESNET32, 8) == equal_layers(RESNET32, 8)
    assert man_boundaries(RESNET32, 15) == single_blocks(RESNET32, 16)[1:]
    assert man_boundaries(RESNET110, 54) == single_blocks(RESNET110, 55)[1:]
    ends = {1: (1, 2, 4, 5, 7, 9, 11, 13, 14, 16, 17), 3: (1, 3, 4, 6, 7, 9, 11, 13, 15)}
    ends[2] = ends[1]
    assert man_boundaries(RESNET110, 32) == tuple(f"stage{s}/{block}" for s in (1, 2, 3) for block in ends[s])


@pytest.mark.parametrize(
    ("network", "modules", "number"), [(RESNET32, 8, 8), (RESNET32, 15, 16), (RESNET110, 32, 32), (RESNET110, 54, 55)]
)
def test_the_number_of_the_papers_for_a_cut(network, modules, number):
    of_man = man_boundaries(network, modules)
    of_man_plus = man_plus_boundaries(network, modules + 1)
    assert len(of_man) == modules - 1
    assert of_man_plus == ("stem", *of_man)
    assert man_number(network, list(of_man)) == man_number(network, of_man_plus) == number


def test_unpublished_boundaries_of_man_are_refused():
    with pytest.raises(ValueError, match="MAN has no boundaries of 16 modules for this network: use 8 or 15 modules"):
        man_boundaries(RESNET32, 16)
    with pytest.raises(ValueError, match=r"MAN\+\+ has no boundaries of 8 modules for this network: use 9 or 16 mod"):
        man_plus_boundaries(RESNET32, 8)
    with pytest.raises(ValueError, match="MAN has boundaries for resnet32 and resnet110 only: use single blocks"):
        man_boundaries(create("resnet20", classes=10), 8)
