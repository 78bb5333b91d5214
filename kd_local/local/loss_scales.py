"""The weights of reconstruction and head in the local losses of modules with a decoder.

A scale is four numbers (ixx_1, ixy_1, ixx_2, ixy_2): the weights of reconstruction and head at the first boundary, then
at the last boundary. Both weights are interpolated linearly between these boundaries. Or it is a pair of weights for
each boundary. The loss of a module without a decoder is the head's loss, with weight 1.

Reference: the values of Yu et al., arXiv 2312.07636, after InfoPro (Wang et al., ICLR 2021); those of MAN (Su et al.,
arXiv 2407.05623).
"""

import re
from collections.abc import Sequence

from kd_local.choices.local import LossScale, check_loss_pair, check_loss_scale
from kd_local.local.partition import man_number
from kd_local.networks import Network

Pairs = tuple[tuple[float, float], ...]

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


def weights_of_boundaries(scale: Sequence[float] | Sequence[Sequence[float]], boundaries: int) -> Pairs:
    """The weights `(reconstruction, head)` at each boundary.

    Args:
        scale: four numbers, or a pair for each boundary, see the docstring of this file.
        boundaries: the number of boundaries.

    Raises:
        ValueError: the scale has another form, or a number is negative or not finite.
    """
    if not isinstance(scale, tuple | list) or not all(isinstance(pair, tuple | list) for pair in scale):
        numbers = check_loss_scale(scale)  # type: ignore[arg-type]
        return tuple(loss_weights(numbers, i, boundaries) for i in range(boundaries))
    if len(scale) != boundaries:
        raise ValueError(
            f"loss scale has {len(scale)} pairs for {boundaries} boundaries: give one pair for each, or four numbers"
        )
    return tuple(map(check_loss_pair, scale))


def man_loss_weights(network: Network, boundaries: Sequence[str], number: int | None = None) -> Pairs:
    """The weights `(reconstruction, head)` of MAN and MAN++ at each boundary.

    >>> from kd_local.local.partition import man_boundaries
    >>> from kd_local.models import create
    >>> network = create("resnet32", classes=10)
    >>> man_loss_weights(network, man_boundaries(network, 8))[0]
    (4.166666666666667, 0.4166666666666667)

    They are 5 (1 - r) and 0.5 (1 - r), r = s / (K - 2). s is the number of the stage of the block after the boundary,
    not of the module, so the weights end far from 0. K is the number in the papers' tables, see `man_number`, not that
    of the modules. r is 0 after a stem that is a module of its own (MAN++). If K - 2 is not above the largest s, all
    weights are 5 and 0.75, those of both papers for ImageNet with K of 2 and 4.

    Args:
        network: a network whose blocks are called `stage1/0`, ...
        boundaries: the names of the blocks after which the network is cut.
        number: K; None: `man_number`.

    Raises:
        ValueError: a block after a boundary belongs to no stage.
    """
    after = [network.names[network.position(name) + 1] for name in boundaries]
    stages = [_stage(name) for name in after]
    steps = (man_number(network, boundaries) if number is None else number) - 2
    if steps <= max(stages, default=0):
        return ((5.0, 0.75),) * len(stages)
    ratios = [
        0.0 if name == network.names[0] else stage / steps for name, stage in zip(boundaries, stages, strict=True)
    ]
    return tuple((5 * (1 - ratio), 0.5 * (1 - ratio)) for ratio in ratios)


def _stage(block: str) -> int:
    found = re.fullmatch(r"stage([0-9]+)/[0-9]+", block)
    if found is None:
        raise ValueError(
            f"block {block!r} after a boundary belongs to no stage, on which MAN's loss weights depend: give a "
            "loss_scale"
        )
    return int(found[1])
