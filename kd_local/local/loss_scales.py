"""The weights of reconstruction and head in the local losses of modules with a decoder.

A scale is four numbers (ixx_1, ixy_1, ixx_2, ixy_2): the weights of reconstruction and head at the first boundary, then
at the last boundary. Both weights are interpolated linearly between these boundaries. The loss of a module without a
decoder is the head's loss, with weight 1.

Reference: the values of Yu et al., arXiv 2312.07636, after InfoPro (Wang et al., ICLR 2021).
"""

from kd_local.choices.local import LossScale

# SVHN, K=4: the last number is 0 in the authors' code, which would train no head at the last boundary. Their row is a
# copy of InfoPro's, whose last number, 1, is used here.
_EQUAL: dict[tuple[str, str], dict[int, LossScale]] = {
    ("resnet32", "cifar10"): {
        2: (5.0, 1.0, 0.0, 0.0),
        4: (6.0, 0.0, 1.0, 2.0),
        8: (5.0, 0.0, 0.0, 2.0),
        16: (5.0, 0.05, 0.2, 0.5),
    },
    ("resnet110", "cifar10"): {
        2: (5.0, 0.5, 0.0, 0.0),
        4: (1.0, 0.0, 0.0, 1.0),
        8: (5.0, 0.0, 0.0, 1.0),
        16: (5.0, 0.0, 0.5, 1.0),
    },
    ("resnet110", "stl10"): {
        2: (10.0, 1.0, 0.0, 0.0),
        4: (20.0, 0.2, 5.0, 2.0),
        8: (20.0, 0.2, 5.0, 1.0),
        16: (20.0, 0.5, 10.0, 0.1),
    },
    ("resnet110", "svhn_cropped"): {
        2: (1.0, 0.1, 0.0, 0.0),
        4: (5.0, 0.0, 0.5, 1.0),
        8: (5.0, 0.0, 0.5, 2.0),
        16: (5.0, 0.2, 0.5, 1.0),
    },
}
_BALANCED: dict[tuple[str, str], dict[int, LossScale]] = {
    ("resnet32", "cifar10"): {2: (5.0, 0.1, 0.0, 0.0), 4: (5.0, 0.0, 0.0, 0.1), 8: (5.0, 0.0, 0.0, 2.0)},
    ("resnet110", "cifar10"): {2: (5.0, 0.1, 0.0, 0.0), 3: (5.0, 0.0, 5.0, 0.1), 4: (5.0, 0.0, 0.0, 0.1)},
}


def published_loss_scale(network: str, data: str, modules: int, *, balanced: bool = False) -> LossScale:
    """The published scale, or the nearest published one.

    >>> published_loss_scale("resnet32", "cifar10", 16)
    (5.0, 0.05, 0.2, 0.5)

    If no scale was published for a number of modules, the scale of the nearest number is used, or of the larger one if
    two are equally near. Another data set gets the scale of CIFAR-10, another network the scale of ResNet-32. Balanced
    boundaries without a scale get the scale of equal layers.

    Args:
        network: such as `resnet32`.
        data: such as `cifar10`.
        modules: number of modules.
        balanced: True if the boundaries balance memory.
    """
    tables = [_BALANCED, _EQUAL] if balanced else [_EQUAL]
    for key in ((network, data), (network, "cifar10"), ("resnet32", data), ("resnet32", "cifar10")):
        for table in tables:
            if modules in table.get(key, {}):
                return table[key][modules]
        if key in _EQUAL:
            # With two modules there is one boundary: that row has no second pair to interpolate to.
            rows = {k: row for k, row in _EQUAL[key].items() if k > 2}
            return rows[min(rows, key=lambda k: (abs(k - modules), -k))]
    raise AssertionError("the last key is in the table")


def loss_weights(scale: LossScale, boundary: int, boundaries: int) -> tuple[float, float]:
    """The weights `(reconstruction, head)` at one boundary.

    Args:
        scale: four numbers, see the docstring of this file.
        boundary: the boundary's number, from 0.
        boundaries: the number of boundaries. A single boundary takes the first two numbers.
    """
    ratio = boundary / (boundaries - 1) if boundaries > 1 else 0.0
    return scale[0] * (1 - ratio) + scale[2] * ratio, scale[1] * (1 - ratio) + scale[3] * ratio
