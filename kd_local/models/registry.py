"""Networks by the names that configs use."""

from collections.abc import Callable
from functools import partial

from kd_local.errors import unknown
from kd_local.models.layers import DType
from kd_local.models.resnet import resnet
from kd_local.networks import Network

_WIDE = (32, 64, 128, 256)

_NETWORKS: dict[str, Callable[..., Network]] = {
    **{f"resnet{depth}": partial(resnet, depth) for depth in (8, 14, 20, 32, 44, 56, 110, 1202)},
    "resnet8x4": partial(resnet, 8, widths=_WIDE),
    "resnet32x4": partial(resnet, 32, widths=_WIDE),
}

NAMES = tuple(_NETWORKS)


def create(name: str, *, classes: int, shortcut: str = "projection", dtype: DType = None) -> Network:
    """The network of that name.

    Raises:
        ValueError: an unknown name, or whatever its family refuses.
    """
    if name not in _NETWORKS:
        raise unknown("network", name, NAMES)
    return _NETWORKS[name](classes=classes, shortcut=shortcut, dtype=dtype)
