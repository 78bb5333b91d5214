"""Names of auxiliary networks in the authors' code.

| auxiliary network | names at the boundary after block B of stage S (the stem is 0, 0) |
| --- | --- |
| a head alone | `aux_classifier_S_B.head.N`, N the index in an `nn.Sequential` |
| PredSim's convolution | `decoder_S_B.decoder.0` |
| AugLocal | `aux_classifier_S_B.head.J.{conv1, ...}`, J = 0, 1, ..., and after D blocks the linear layer `head.(D+2)` |
"""

from collections.abc import Callable
from typing import Any

from kd_local.choices.local import HEADS
from kd_local.interop.layouts import Layer, Path, conv_norm
from kd_local.local.auxiliaries.auglocal import ThinnedNetwork
from kd_local.local.auxiliaries.head import Head
from kd_local.local.heads import LocalHead
from kd_local.local.mlp_heads import PooledLinear, PooledMLP
from kd_local.local.module import LocalModule
from kd_local.models.resnet import BasicBlock


def boundary_name(block: str) -> str:
    """The authors' name of a block of a CIFAR ResNet.

    >>> boundary_name("stage1/2"), boundary_name("stem")
    ('1_2', '0_0')
    """
    return "0_0" if block == "stem" else block.removeprefix("stage").replace("/", "_")


def auxiliary_layers(module: LocalModule) -> list[Layer]:
    """The layers of a module's auxiliary network.

    Raises:
        ValueError: the authors' code has no such auxiliary network.
    """
    for kind, layers in _LAYERS.items():
        if isinstance(module.auxiliary, kind):
            return layers(module)
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


def _head(module: LocalModule) -> list[Layer]:
    assert isinstance(module.auxiliary, Head)
    return head_layers(module.auxiliary.network, f"aux_classifier_{boundary_name(module.names[-1])}.head")


def _thinned(module: LocalModule) -> list[Layer]:
    assert isinstance(module.auxiliary, ThinnedNetwork)
    name, layers = f"aux_classifier_{boundary_name(module.names[-1])}.head", list[Layer]()
    blocks = module.auxiliary.blocks
    for i, block in enumerate(blocks):
        if not isinstance(block, BasicBlock):
            raise ValueError(f"block {type(block).__name__} is not in the authors' code: cut a CIFAR ResNet")
        layers += basic_block(f"{name}.{i}", (f"auxiliary{i}",))
    first = len(blocks) + 2  # after pooling and flattening; with batch normalisation, the linear layer is one later
    if len(blocks) == 1:
        layers.append(Layer(f"{name}.{first}", ("classifier", "norm"), "batch_norm"))
    linear = first + (len(blocks) == 1)
    return [*layers, Layer(f"{name}.{linear}", ("classifier", "linear", "dense"), "linear")]


_LAYERS: dict[type, Callable[[LocalModule], list[Layer]]] = {Head: _head, ThinnedNetwork: _thinned}
