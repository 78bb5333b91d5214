"""Networks by the names that configs use."""

from collections.abc import Callable
from functools import partial

from kd_local.errors import unknown
from kd_local.models.imagenet_resnet import imagenet_resnet
from kd_local.models.layers import DType
from kd_local.models.mobilenet import mobilenetv1, mobilenetv2
from kd_local.models.resnet import SHORTCUTS, resnet
from kd_local.models.shufflenet import shufflenetv1, shufflenetv2
from kd_local.models.vgg import vgg
from kd_local.models.vision_transformer import vision_transformer
from kd_local.models.wide_resnet import wide_resnet
from kd_local.networks import Network

_WIDE = (32, 64, 128, 256)

_CIFAR_RESNETS: dict[str, Callable[..., Network]] = {
    **{f"resnet{depth}": partial(resnet, depth) for depth in (8, 14, 20, 32, 44, 56, 110, 1202)},
    "resnet8x4": partial(resnet, 8, widths=_WIDE),
    "resnet32x4": partial(resnet, 32, widths=_WIDE),
}
_OTHERS: dict[str, Callable[..., Network]] = {
    **{f"wrn_{depth}_{width}": partial(wide_resnet, depth, width) for depth in (16, 40) for width in (1, 2)},
    **{f"vgg{depth}": partial(vgg, depth) for depth in (8, 11, 13, 16, 19)},
    **{f"resnet{depth}": partial(imagenet_resnet, depth) for depth in (18, 34, 50, 101)},
    **{f"resnet{depth}_cifar": partial(imagenet_resnet, depth, small_images=True) for depth in (18, 34, 50, 101)},
    "mobilenetv1": mobilenetv1,
    "mobilenetv2": mobilenetv2,
    "mobilenetv2_half": partial(mobilenetv2, width=0.5, relu6=False, small_images=True),
    "shufflenetv1": shufflenetv1,
    "shufflenetv2": shufflenetv2,
    "vit_ti16": partial(vision_transformer, width=192, heads=3),
    "vit_s16": partial(vision_transformer, width=384, heads=6),
}

NAMES = (*_CIFAR_RESNETS, *_OTHERS)


def create(name: str, *, classes: int, shortcut: str = "projection", dtype: DType = None) -> Network:
    """The network of that name.

    `shortcut` is an option of CIFAR ResNets (`resnet8` to `resnet32x4`), see `resnet`; others have it as it is.

    Raises:
        ValueError: an unknown name, or whatever its family refuses.
    """
    if name not in NAMES:
        raise unknown("network", name, NAMES)
    if name in _CIFAR_RESNETS:
        return _CIFAR_RESNETS[name](classes=classes, shortcut=shortcut, dtype=dtype)
    if shortcut != SHORTCUTS[0]:
        raise ValueError(
            f"shortcut {shortcut!r} is not for {name}: leave it at {SHORTCUTS[0]!r}, or use a CIFAR ResNet "
            f"({', '.join(_CIFAR_RESNETS)})"
        )
    return _OTHERS[name](classes=classes, dtype=dtype)
