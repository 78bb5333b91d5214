"""Names of auxiliary networks in the authors' code.

| auxiliary network | names at the boundary after block B of stage S (the stem is 0, 0) |
| --- | --- |
| a head alone | `aux_classifier_S_B.head.N`, N the index in an `nn.Sequential` |
| PredSim's convolution | `decoder_S_B.decoder.0` |
| AugLocal | `aux_classifier_S_B.head.J.{conv1, ...}`, J = 0, 1, ..., and after D blocks the linear layer `head.(D+2)` |
| MAN, MAN++ | `LB.I`, `EMA_Net.I`, `ema_s.I`, `aux_classifier_S_B.head.N`; S, B is the block *after* the boundary |

I counts the boundaries from 0. After a stem that is a module of its own (MAN++), the names are `LB_first`, `EMA_first`,
`ema_s_first` and `aux_classifier_0_0`, and I does not count this boundary.
"""

from collections.abc import Callable
from typing import Any

from kd_local.choices.local import HEADS
from kd_local.interop.layouts import Layer, Path, conv_norm
from kd_local.local.auxiliaries.auglocal import ThinnedNetwork
from kd_local.local.auxiliaries.head import Head
from kd_local.local.auxiliaries.momentum import AVERAGE, TwinAndAverage
from kd_local.local.cut_network import CutNetwork
from kd_local.local.heads import LocalHead
from kd_local.local.mlp_heads import PooledLinear, PooledMLP
from kd_local.local.wide_mlp_head import WideMLPHead
from kd_local.models.resnet import BasicBlock


def boundary_name(block: str) -> str:
    """The authors' name of a block of a CIFAR ResNet.

    >>> boundary_name("stage1/2"), boundary_name("stem")
    ('1_2', '0_0')
    """
    return "0_0" if block == "stem" else block.removeprefix("stage").replace("/", "_")


def names_of_following(cut_network: CutNetwork) -> bool:
    """True if the authors' code names heads and decoders after the block that follows the boundary, as MAN's does."""
    return isinstance(cut_network.modules[0].auxiliary, TwinAndAverage)


def names_of_boundary(cut_network: CutNetwork, number: int) -> str:
    """S_B in the names of the head and the decoder of a module."""
    last = cut_network.modules[number].names[-1]
    if names_of_following(cut_network) and last != "stem":
        return boundary_name(cut_network.modules[number + 1].names[0])
    return boundary_name(last)


def auxiliary_layers(cut_network: CutNetwork, number: int) -> list[Layer]:
    """The layers of a module's auxiliary network.

    The parameters of its averages are described as those of a network of the module that has the name of their part.

    Raises:
        ValueError: the authors' code has no such auxiliary network.
    """
    module = cut_network.modules[number]
    for kind, layers in _LAYERS.items():
        if isinstance(module.auxiliary, kind):
            return layers(cut_network, number)
    raise ValueError(
        f"the auxiliary network {type(module.auxiliary).__name__} of {module.name} is not in the authors' code"
    )


def basic_block(name: str, path: Path) -> tuple[Layer, ...]:
    """The layers of a `BasicBlock` with this name in PyTorch."""
    return (
        *conv_norm(f"{name}.conv1", f"{name}.bn1", (*path, "conv1")),
        *conv_norm(f"{name}.conv2", f"{name}.bn2", (*path, "conv2")),
        *conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", (*path, "projection")),
    )


def head_layers(head: Any, name: str) -> list[Layer]:
    """The layers of a head with this name in PyTorch; in our variables it is called `head`.

    N in `NAME.N` is an index in an `nn.Sequential`, which counts pooling, ReLU and flattening.

    Raises:
        ValueError: the authors' code has no such head.
    """
    if isinstance(head, PooledLinear):
        return [Layer(f"{name}.2", ("head", "linear", "dense"), "linear")]  # after pooling and flattening
    if isinstance(head, PooledMLP):
        layers = [
            layer
            for i in range(3)
            for layer in conv_norm(f"{name}.{3 * i + 1}", f"{name}.{3 * i + 2}", ("head", f"conv{i}"))
        ]
        for i in range(2):
            hidden = ("head", f"hidden{i}")
            layers.append(Layer(f"{name}.{3 * i + 12}", (*hidden, "dense"), "linear"))
            layers.append(Layer(f"{name}.{3 * i + 13}", (*hidden, "norm"), "batch_norm"))
        return [*layers, Layer(f"{name}.18", ("head", "linear", "dense"), "linear")]
    if isinstance(head, WideMLPHead):
        return _wide_mlp(name)
    if not isinstance(head, LocalHead):
        raise ValueError(f"head {type(head).__name__} is not in the authors' code: use one of {', '.join(HEADS)}")
    convolutions, linears = int(head.kind[0]), int(head.kind[2])
    layers = []
    for i in range(convolutions):  # convolution, batch normalisation, ReLU
        layers += conv_norm(f"{name}.{3 * i}", f"{name}.{3 * i + 1}", ("head", f"conv{i}"))
    first = 3 * convolutions + 2  # after pooling and flattening
    for i in range(linears):  # linear, ReLU, linear, ...
        layers.append(Layer(f"{name}.{first + 2 * i}", ("head", f"linear{i}", "dense"), "linear"))
    return layers


def _wide_mlp(name: str) -> list[Layer]:
    layers: list[Layer] = []
    for i in range(3):  # convolution, batch normalisation, ReLU; then pooling and flattening
        layers += conv_norm(f"{name}.{3 * i}", f"{name}.{3 * i + 1}", ("head", f"conv{i}"))
    for i in range(3):  # linear, batch normalisation, ReLU
        layers.append(Layer(f"{name}.{11 + 3 * i}", ("head", f"linear{i}", "dense"), "linear"))
        layers.append(Layer(f"{name}.{12 + 3 * i}", ("head", f"norm{i}"), "batch_norm"))
    return [*layers, Layer(f"{name}.20", ("head", "linear3", "dense"), "linear")]


def _head(cut_network: CutNetwork, number: int) -> list[Layer]:
    head = cut_network.modules[number].auxiliary
    assert isinstance(head, Head)
    return head_layers(head.network, f"aux_classifier_{names_of_boundary(cut_network, number)}.head")


def _twin_and_average(cut_network: CutNetwork, number: int) -> list[Layer]:
    module, alone = cut_network.modules[number], cut_network.modules[0].names == ("stem",)
    of = module.auxiliary
    assert isinstance(of, TwinAndAverage)
    if not isinstance(of.block, BasicBlock) or of.further:
        raise ValueError(
            f"the auxiliary network of {module.name}, with block {type(of.block).__name__} and {len(of.further)} "
            "further ones, is not in the authors' code: cut a CIFAR ResNet, with blocks=1"
        )
    twin, average, scale = (
        f"{name}_first" if alone and number == 0 else f"{several}.{number - alone}"
        for name, several in (("LB", "LB"), ("EMA", "EMA_Net"), ("ema_s", "ema_s"))
    )
    (part,) = module.after
    return [
        *basic_block(twin, ("twin",)),
        *basic_block(average, (part.program.name,)),
        *basic_block(average, (AVERAGE,)),
        Layer(scale, ("scale", "scale"), "scalar"),
        *head_layers(of.head, f"aux_classifier_{names_of_boundary(cut_network, number)}.head"),
    ]


def _thinned(cut_network: CutNetwork, number: int) -> list[Layer]:
    thinned = cut_network.modules[number].auxiliary
    assert isinstance(thinned, ThinnedNetwork)
    name, layers = f"aux_classifier_{names_of_boundary(cut_network, number)}.head", list[Layer]()
    blocks = thinned.blocks
    for i, block in enumerate(blocks):
        if not isinstance(block, BasicBlock):
            raise ValueError(f"block {type(block).__name__} is not in the authors' code: cut a CIFAR ResNet")
        layers += basic_block(f"{name}.{i}", (f"auxiliary{i}",))
    first = len(blocks) + 2  # after pooling and flattening; with batch normalisation, the linear layer is one later
    if len(blocks) == 1:
        layers.append(Layer(f"{name}.{first}", ("classifier", "norm"), "batch_norm"))
    linear = first + (len(blocks) == 1)
    return [*layers, Layer(f"{name}.{linear}", ("classifier", "linear", "dense"), "linear")]


_LAYERS: dict[type, Callable[[CutNetwork, int], list[Layer]]] = {
    Head: _head,
    ThinnedNetwork: _thinned,
    TwinAndAverage: _twin_and_average,
}
