"""Boundaries between the modules of a cut network.

Reference: Yu et al., arXiv 2312.07636, after InfoPro (Wang et al., ICLR 2021). The authors chose boundaries for
ResNet-32 and ResNet-110 ("equal layers" and "memory balance"). Any other network is cut into nearly equal numbers of
layers. MAN (arXiv 2407.05623), HPFF (arXiv 2407.05638), MLAAN (arXiv 2406.16633) and MAN++ (arXiv 2507.16279) have
boundaries of their own.
"""

from collections.abc import Sequence

from kd_local.errors import check_type, unknown
from kd_local.networks import Network


def block_names(text: str) -> tuple[str, ...]:
    """Block names from a text such as "1.4 2.4": each item is STAGE.BLOCK, and the authors write [1,4][2,4]. Stage 0 is
    the stem.

    >>> block_names("0.0 1.4")
    ('stem', 'stage1/4')
    """
    pairs = [item.split(".") for item in text.split()]
    return tuple("stem" if stage == "0" else f"stage{stage}/{block}" for stage, block in pairs)


# By the number of blocks per stage: ResNet-32 has 5, ResNet-110 has 18.
_EQUAL_LAYERS: dict[int, dict[int, tuple[str, ...]]] = {
    5: {
        2: block_names("2.1"),
        3: block_names("1.4 2.4"),
        4: block_names("1.2 2.1 3.0"),
        8: block_names("1.0 1.2 1.4 2.1 2.3 3.0 3.2"),
        16: block_names("0.0 1.0 1.1 1.2 1.3 1.4 2.0 2.1 2.2 2.3 2.4 3.0 3.1 3.2 3.3"),
    },
    18: {
        2: block_names("2.8"),
        3: block_names("1.17 2.17"),
        4: block_names("1.11 2.7 3.3"),
        8: block_names("1.4 1.11 2.0 2.7 2.14 3.3 3.10"),
        16: block_names("1.1 1.4 1.7 1.10 1.13 1.16 2.1 2.4 2.7 2.11 2.15 3.1 3.5 3.9 3.13"),
    },
}

# Balanced for a batch on one GPU. The images of STL-10 are 96x96.
_BALANCED_MEMORY: dict[int, dict[str, dict[int, tuple[str, ...]]]] = {
    5: {
        "cifar10": {
            2: block_names("1.3"),
            4: block_names("1.2 1.4 2.2"),
            8: block_names("1.1 1.2 1.3 2.1 2.2 3.1 3.2"),
            16: _EQUAL_LAYERS[5][16],
        },
    },
    18: {
        "cifar10": {2: block_names("1.14"), 3: block_names("1.9 2.2"), 4: block_names("1.6 1.14 2.8")},
        "stl10": {2: block_names("1.14"), 3: block_names("1.8 2.1"), 4: block_names("1.6 1.14 2.8")},
    },
}

# The stem belongs to the first module.
_MAN: dict[int, dict[int, tuple[str, ...]]] = {
    5: {8: _EQUAL_LAYERS[5][8], 15: _EQUAL_LAYERS[5][16][1:]},
    18: {
        32: block_names(
            "1.1 1.2 1.4 1.5 1.7 1.9 1.11 1.13 1.14 1.16 1.17 2.1 2.2 2.4 2.5 2.7 2.9 2.11 2.13 2.14 2.16 2.17 "
            "3.1 3.3 3.4 3.6 3.7 3.9 3.11 3.13 3.15"
        ),
        54: block_names(" ".join(f"{stage}.{block}" for stage in (1, 2, 3) for block in range(18))[: -len(" 3.17")]),
    },
}


def is_cifar_resnet(network: Network, blocks: int) -> bool:
    """True if a network has the blocks of a CIFAR ResNet with this number of blocks per stage."""
    stages = [f"stage{stage}/{block}" for stage in (1, 2, 3) for block in range(blocks)]
    return network.names == ("stem", *stages, "head")


def equal_layers(network: Network, modules: int) -> tuple[str, ...]:
    """The boundaries of `modules` modules with about the same number of layers.

    >>> from kd_local.models import create
    >>> equal_layers(create("resnet32", classes=10), 4)
    ('stage1/2', 'stage2/1', 'stage3/0')

    A block has the number of layers in its attribute `layers`, or 1 without this attribute. The zoo's blocks count
    layers with weights, but not those of shortcuts.

    Raises:
        ValueError: `modules` is less than 1 or more than the number of blocks.
    """
    _check_modules(network, modules)
    for blocks, table in _EQUAL_LAYERS.items():
        if modules in table and is_cifar_resnet(network, blocks):
            return table[modules]
    ends = []
    total = 0
    for _, block in network:
        total += getattr(block, "layers", 1)
        ends.append(total)
    boundaries: list[int] = []
    for number in range(1, modules):
        first = boundaries[-1] + 1 if boundaries else 0
        last = len(network) - 1 - (modules - number)
        wanted = number * total / modules
        boundaries.append(min(range(first, last + 1), key=lambda i: abs(ends[i] - wanted)))
    return tuple(network.names[i] for i in boundaries)


def single_blocks(network: Network, modules: int) -> tuple[str, ...]:
    """The boundaries of `modules` modules of one block each; the last module has the remaining blocks.

    >>> from kd_local.models import create
    >>> single_blocks(create("resnet8", classes=10), 3)
    ('stem', 'stage1/0')

    Raises:
        ValueError: `modules` is less than 1 or more than the number of blocks.
    """
    _check_modules(network, modules)
    return network.names[: modules - 1]


def stage_boundaries(network: Network) -> tuple[str, ...]:
    """The boundaries after all stages of a network but its stem and its last stage.

    >>> from kd_local.models import create
    >>> stage_boundaries(create("resnet32", classes=10))
    ('stage1/4', 'stage2/4')
    """
    return network.stages[1:-1]


def _check_modules(network: Network, modules: int) -> None:
    if not isinstance(modules, int) or not 1 <= modules <= len(network):
        raise ValueError(f"{modules} modules for a network of {len(network)} blocks: use 1 to {len(network)}")


def balanced_memory(network: Network, modules: int, *, data: str = "cifar10") -> tuple[str, ...]:
    """The published boundaries with which all modules need about the same memory.

    Args:
        network: ResNet-32 or ResNet-110.
        modules: number of modules.
        data: such as `cifar10`. For a data set without published boundaries, CIFAR-10's are used.

    Raises:
        ValueError: no boundaries are published for this network or number of modules.
    """
    if modules == 1:
        return ()
    for blocks, tables in _BALANCED_MEMORY.items():
        if is_cifar_resnet(network, blocks):
            table = tables.get(data, tables["cifar10"])
            if modules not in table:
                known = ", ".join(map(str, table))
                raise ValueError(
                    f"no memory-balanced boundaries are known for {modules} modules of this network: use {known} "
                    "modules, boundaries of equal layers, or name the boundaries"
                )
            return table[modules]
    raise ValueError(
        "memory-balanced boundaries are known for resnet32 and resnet110 only: use equal layers, or name the boundaries"
    )


def man_boundaries(network: Network, modules: int) -> tuple[str, ...]:
    """The boundaries of MAN, HPFF and MLAAN. The stem belongs to the first module.

    >>> from kd_local.models import create
    >>> man_boundaries(create("resnet32", classes=10), 15)[:2]
    ('stage1/0', 'stage1/1')

    The papers call the cut of ResNet-32 into 15 modules "K=16", and that of ResNet-110 into 54 modules "K=55": they
    count the stem as a module. Their "K=8" and "K=32" have 8 and 32 modules. See `man_number`.

    Args:
        network: ResNet-32 or ResNet-110.
        modules: the number of modules that there really are: 8 or 15 for ResNet-32, 32 or 54 for ResNet-110.

    Raises:
        ValueError: MAN has no boundaries for this network or number of modules.
    """
    return _of_man(network, modules, stem=False)


def man_plus_boundaries(network: Network, modules: int) -> tuple[str, ...]:
    """The boundaries of MAN++: the stem is a module of its own, before the modules of MAN.

    >>> from kd_local.models import create
    >>> man_plus_boundaries(create("resnet32", classes=10), 9)[:2]
    ('stem', 'stage1/0')

    The paper's "K=16" and "K=55" have 16 and 55 modules. Its "K=8" and "K=32" have 9 and 33.

    Args:
        network: ResNet-32 or ResNet-110.
        modules: the number of modules that there really are: 9 or 16 for ResNet-32, 33 or 55 for ResNet-110.

    Raises:
        ValueError: MAN++ has no boundaries for this network or number of modules.
    """
    return (network.names[0], *_of_man(network, modules - 1, stem=True))


def _of_man(network: Network, modules: int, *, stem: bool) -> tuple[str, ...]:
    method = "MAN++" if stem else "MAN"
    for blocks, table in _MAN.items():
        if is_cifar_resnet(network, blocks):
            if modules not in table:
                known = " or ".join(str(number + stem) for number in table)
                raise ValueError(
                    f"{method} has no boundaries of {modules + stem} modules for this network: use {known} modules, "
                    "boundaries of equal layers, or name the boundaries"
                )
            return table[modules]
    raise ValueError(
        f"{method} has boundaries for resnet32 and resnet110 only: use single blocks, equal layers, or name the "
        "boundaries"
    )


def man_number(network: Network, boundaries: Sequence[str]) -> int:
    """The K of the papers' tables for a cut, which enters the loss weights of MAN, HPFF and MAN++.

    >>> from kd_local.models import create
    >>> network = create("resnet32", classes=10)
    >>> [man_number(network, man_boundaries(network, modules)) for modules in (8, 15)]
    [8, 16]
    >>> [man_number(network, man_plus_boundaries(network, modules)) for modules in (9, 16)]
    [8, 16]

    If each block is a module, K counts the stem as a module, also if it belongs to the first. Otherwise, K does not
    count a stem that is a module of its own.
    """
    stem = tuple(boundaries[:1]) == network.names[:1]
    without = len(boundaries) + 1 - stem
    return without + (without == len(network) - 2)


def check_boundaries(network: Network, boundaries: Sequence[str]) -> tuple[str, ...]:
    """The boundaries as a tuple, after a check of their names and order.

    Raises:
        ValueError: a name is not that of a block, or is that of the last block, or the order is not the network's.
    """
    check_type("boundaries", boundaries, tuple | list, f"use a tuple of names of blocks, such as {network.names[:1]}")
    for name in boundaries:
        if name not in network.names[:-1]:
            raise unknown("boundary", name, network.names[:-1])
    positions = [network.position(name) for name in boundaries]
    if positions != sorted(set(positions)):
        raise ValueError(
            f"boundaries {', '.join(boundaries)} are repeated or not in the network's order: use "
            f"{', '.join(network.names[i] for i in sorted(set(positions)))}"
        )
    return tuple(boundaries)
