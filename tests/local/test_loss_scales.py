import pytest

from kd_local.choices.local import check_loss_scale
from kd_local.local.loss_scales import loss_weights, published_loss_scale


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
