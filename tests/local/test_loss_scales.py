import numpy as np
import pytest

from kd_local.choices.local import check_loss_scale
from kd_local.local import man_boundaries, man_loss_weights, man_plus_boundaries
from kd_local.local.loss_scales import loss_weights, published_loss_scale, weights_of_boundaries
from kd_local.models import create
from kd_local.networks import Network

RESNET32 = create("resnet32", classes=10)


@pytest.mark.parametrize(
    ("network", "data", "modules", "balanced", "scale"),
    [
        ("resnet32", "cifar10", 16, False, (5, 0.05, 0.2, 0.5)),
        ("resnet110", "svhn_cropped", 4, False, (5, 0, 0.5, 1)),  # with the authors' 0 no head would be trained
        ("resnet110", "cifar10", 3, True, (5, 0, 5, 0.1)),
        ("resnet32", "cifar10", 4, True, (5, 0, 0, 0.1)),
        ("resnet32", "cifar10", 16, True, (5, 0.05, 0.2, 0.5)),  # no balanced scale: the one of equal layers
        ("resnet32", "cifar10", 3, False, (6, 0, 1, 2)),  # 4 is the nearest
        ("resnet32", "cifar10", 12, False, (5, 0.05, 0.2, 0.5)),  # 8 and 16 are equally near: the larger
        ("resnet32", "stl10", 8, False, (5, 0, 0, 2)),  # another data set
        ("resnet110", "cifar100", 8, False, (5, 0, 0, 1)),
        ("resnet8", "digits", 2, False, (5, 1, 0, 0)),  # another network
    ],
)
def test_published_scales(network, data, modules, balanced, scale):
    assert published_loss_scale(network, data, modules, balanced=balanced) == scale


def test_every_boundary_has_a_positive_weight():
    for data in ("cifar10", "stl10", "svhn_cropped"):
        for modules in range(2, 17):
            scale = published_loss_scale("resnet110", data, modules)
            for boundary in range(modules - 1):
                assert sum(loss_weights(scale, boundary, modules - 1)) > 0, (data, modules, boundary)


def test_weights_are_interpolated_linearly():
    assert loss_weights((5.0, 0.0, 1.0, 2.0), 0, 1) == (5, 0)
    assert [loss_weights((5.0, 0.0, 1.0, 2.0), i, 5) for i in range(5)] == [
        (5, 0), (4, 0.5), (3, 1), (2, 1.5), (1, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [(1.0, 2.0), (1.0, 2.0, 3.0, -1.0), (1.0, 2.0, 3.0, float("nan"))])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(ValueError, match="give four numbers >= 0"):
        check_loss_scale(scale)


def test_a_pair_for_each_boundary():
    assert weights_of_boundaries([(1.0, 2.0), (3.0, 0.0)], 2) == ((1.0, 2.0), (3.0, 0.0))
    assert weights_of_boundaries((5.0, 0.0, 1.0, 2.0), 3) == ((5, 0), (3, 1), (1, 2))
    assert weights_of_boundaries((), 0) == ()
    with pytest.raises(ValueError, match="loss scale has 2 pairs for 3 boundaries: give one pair for each, or four"):
        weights_of_boundaries(((1.0, 2.0), (3.0, 0.0)), 3)
    for wrong in ((1.0, -2.0), (1.0, 2.0, 3.0), (float("inf"), 1.0)):
        with pytest.raises(ValueError, match="loss scale has the pair .*: give two numbers >= 0, at most 1e6"):
            weights_of_boundaries((wrong,), 1)


def test_weights_of_man_follow_the_stage_and_the_number_of_the_table():
    stages = [1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3]  # of the blocks after the boundaries
    expected = [(5 * (1 - stage / 14), 0.5 * (1 - stage / 14)) for stage in stages]
    of_man = man_loss_weights(RESNET32, man_boundaries(RESNET32, 15))
    np.testing.assert_allclose(of_man, expected)
    assert man_loss_weights(RESNET32, man_plus_boundaries(RESNET32, 16)) == ((5, 0.5), *of_man)
    # The seven boundaries of K=8: the stem is not counted, also where it is a module.
    eight = [(5 * (1 - stage / 6), 0.5 * (1 - stage / 6)) for stage in (1, 1, 2, 2, 2, 3, 3)]
    np.testing.assert_allclose(man_loss_weights(RESNET32, man_boundaries(RESNET32, 8)), eight)
    np.testing.assert_allclose(man_loss_weights(RESNET32, man_plus_boundaries(RESNET32, 9)), [(5, 0.5), *eight])


def test_few_modules_have_the_weights_of_man_for_imagenet():
    assert man_loss_weights(RESNET32, ("stage2/0",)) == ((5, 0.75),)
    assert man_loss_weights(RESNET32, ("stage1/0", "stage2/0", "stage3/0")) == ((5, 0.75),) * 3


def test_weights_of_man_need_stages():
    network = Network.of(dict.fromkeys(("a", "b", "c"), RESNET32["stem"]))
    with pytest.raises(ValueError, match="block 'b' after a boundary belongs to no stage, .*: give a loss_scale"):
        man_loss_weights(network, ("a",))
