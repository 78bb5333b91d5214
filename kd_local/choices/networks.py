"""The names of the networks, which `kd_local.models.registry` makes, and of their options."""

from kd_local.errors import unknown

CIFAR_RESNETS: tuple[str, ...] = (
    *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110, 1202)), "resnet8x4", "resnet32x4"
)  # fmt: skip
NETWORKS: tuple[str, ...] = (
    *CIFAR_RESNETS,
    *(f"wrn_{depth}_{width}" for depth in (16, 40) for width in (1, 2)),
    *(f"vgg{depth}" for depth in (8, 11, 13, 16, 19)),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101)),
    *(f"resnet{depth}_cifar" for depth in (18, 34, 50, 101)),
    *("mobilenetv1", "mobilenetv2", "mobilenetv2_half", "shufflenetv1", "shufflenetv2"),
    *(f"vgg{depth}_bn" for depth in (11, 13, 16, 19)),
    *(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
    *("vit_ti16", "vit_s16", "vit_ti_16", "vit_s_16", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"),
    *("vit_ti2", "vit_ti4", "vit_ti_2", "vit_ti_4"),
)
SHORTCUTS: tuple[str, ...] = ("projection", "padding")
"""Shortcuts of CIFAR ResNets; the other networks have the first only."""


def check_network_name(name: str, shortcut: str) -> None:
    """Checks that there is a network of this name, and that it has these shortcuts.

    Raises:
        ValueError: it has not.
    """
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    if shortcut not in SHORTCUTS:
        raise unknown("shortcut", shortcut, SHORTCUTS)
    if shortcut != SHORTCUTS[0] and name not in CIFAR_RESNETS:
        raise ValueError(
            f"shortcut {shortcut!r} is not for {name}: leave it at {SHORTCUTS[0]!r}, or use a CIFAR ResNet "
            f"({', '.join(CIFAR_RESNETS)})"
        )
