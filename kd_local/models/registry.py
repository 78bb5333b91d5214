"""Networks by name."""

from collections.abc import Callable
from functools import partial

from kd_local.choices.networks import NETWORKS, check_network_name
from kd_local.models.class_token import class_token_transformer
from kd_local.models.imagenet_resnet import imagenet_resnet
from kd_local.models.layers import DType
from kd_local.models.mobilenet import mobilenetv1, mobilenetv2
from kd_local.models.resnet import resnet
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
    **{f"vgg{depth}_bn": partial(vgg, depth, small_images=False) for depth in (11, 13, 16, 19)},
    **{
        f"shufflenet_v2_x{width:.1f}".replace(".", "_"): partial(shufflenetv2, width=width, small_images=False)
        for width in (0.5, 1.0, 1.5, 2.0)
    },
    "vit_ti16": partial(vision_transformer, width=192, heads=3),
    "vit_s16": partial(vision_transformer, width=384, heads=6),
    "vit_ti_16": partial(class_token_transformer, width=192, heads=3),
    "vit_s_16": partial(class_token_transformer, width=384, heads=6),
    "vit_b_16": partial(class_token_transformer, width=768, heads=12),
    "vit_b_32": partial(class_token_transformer, width=768, heads=12, patch_size=32),
    "vit_l_16": partial(class_token_transformer, width=1024, heads=16, depth=24),
    "vit_l_32": partial(class_token_transformer, width=1024, heads=16, depth=24, patch_size=32),
    **{f"vit_ti{patch}": partial(vision_transformer, width=192, heads=3, patch_size=patch) for patch in (2, 4)},
    **{f"vit_ti_{patch}": partial(class_token_transformer, width=192, heads=3, patch_size=patch) for patch in (2, 4)},
}

NAMES = NETWORKS


def create(name: str, *, classes: int, shortcut: str = "projection", dtype: DType = None) -> Network:
    """A network of the zoo.

    >>> import jax
    >>> network = create("resnet20", classes=10)
    >>> network.names[:2], network.names[-1], network.stages
    (('stem', 'stage1/0'), 'head', ('stem', 'stage1/2', 'stage2/2', 'stage3/2'))
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"))
    >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
    272474

    Args:
        name: one of `NAMES`.
        classes: number of logits, at least 1.
        shortcut: `projection` or, for CIFAR ResNets (`resnet8` to `resnet32x4`) only, `padding`, see `resnet`.
        dtype: compute dtype; parameters stay float32. None computes in the common type of images and parameters.

    Raises:
        ValueError: the name is unknown, or an argument is out of range for the family.
    """
    check_network_name(name, shortcut)
    if name in _CIFAR_RESNETS:
        return _CIFAR_RESNETS[name](classes=classes, shortcut=shortcut, dtype=dtype)
    return _OTHERS[name](classes=classes, dtype=dtype)
