"""The networks of `kd_local` in PyTorch: CIFAR ResNets, cut into the modules of a `CutNetwork`.

Parameters have the names that `kd_local.interop.contsup` writes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kd_local.local import CutNetwork
from kd_local.local.auxiliaries.head import Head
from kd_local.local.contexts import FeatureEncoder, ImageEncoder
from kd_local.local.heads import LocalHead

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """The basic block of a CIFAR ResNet with a projection shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Sequence(nn.Module):
    """A sequence of layers under a name, as in the ContSup authors' code."""

    def __init__(self, name: str, *layers: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self.name)(x)


class CutResNet(nn.Module):
    """A CIFAR ResNet cut into the modules of a `CutNetwork`. With one module it is an ordinary ResNet."""

    def __init__(self, cut_network: CutNetwork, classes: int, channels: int) -> None:
        super().__init__()
        names = cut_network.network.names
        self.modules_of = cut_network.modules
        self.conv1, self.bn1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for stage, width in enumerate(WIDTHS, start=1):
            count = sum(name.startswith(f"stage{stage}/") for name in names)
            before = WIDTHS[max(stage - 2, 0)]
            blocks = (Block(width if i else before, width, 2 if stage > 1 and i == 0 else 1) for i in range(count))
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(WIDTHS[-1], classes)
        self.cont_sup_node = nn.Module()
        widths, shapes = {"images": channels}, {name: self._width(name) for name in names}
        for number, module in enumerate(self.modules_of):
            width = widths[module.reads[0]]
            slot = 0
            for network, source in zip(module.contexts, module.reads[1:], strict=False):
                if isinstance(network, ImageEncoder):
                    layers = (*_conv_norm(channels, network.width, 3), *_conv_norm(network.width, width, 3))
                    self.cont_sup_node.add_module(f"encoder_{number - 1}", Sequence("encoder", *layers))
                elif isinstance(network, FeatureEncoder):
                    layers = _conv_norm(widths[source], width, 1)
                    self.cont_sup_node.add_module(f"resencoder_{number - 1}_{slot}", Sequence("encoder", *layers))
                    slot += 1
            after = shapes[module.names[-1]]
            widths.update(zip(module.writes, (after, width), strict=False))
            if isinstance(module.auxiliary, Head) and isinstance(module.auxiliary.network, LocalHead):
                self.add_module(_head_name(module), Sequence("head", *_head(module.auxiliary.network, after)))
            elif module.auxiliary is not None:
                raise ValueError(
                    f"{module.name} has an auxiliary network that is not written in PyTorch: use a head alone"
                )

    @staticmethod
    def _width(name: str) -> int:
        return WIDTHS[int(name[5]) - 1] if name.startswith("stage") else WIDTHS[0]

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The output of the block with this name in the package."""
        if name == "stem":
            return F.relu(self.bn1(self.conv1(x)))
        if name.startswith("stage"):
            stage, _, number = name.removeprefix("stage").partition("/")
            return self.get_submodule(f"layer{stage}.{number}")(x)
        return self.fc(x.mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's logits, without local heads and contexts."""
        for module in self.modules_of:
            for name in module.names:
                x = self.block(name, x)
        return x

    def module_loss(self, number: int, labels: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(loss, output, input with contexts)` of a module, for the tensors that it reads."""
        module = self.modules_of[number]
        x, slot = tensors[0], 0
        for network, context in zip(module.contexts, tensors[1:], strict=False):
            image = isinstance(network, ImageEncoder)
            name = f"encoder_{number - 1}" if image else f"resencoder_{number - 1}_{slot}"
            slot += not image
            supplied = self.cont_sup_node.get_submodule(name)(context)
            x = x + F.adaptive_avg_pool2d(supplied, tensors[0].shape[-2:])
        output = x
        for name in module.names:
            output = self.block(name, output)
        logits = output if module.auxiliary is None else self.get_submodule(_head_name(module))(output)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, labels), output, x


def _conv_norm(before: int, after: int, size: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, size, 1, size // 2), nn.BatchNorm2d(after), nn.ReLU()


def _head_name(module: Any) -> str:
    name = module.names[-1]
    return "aux_classifier_" + ("0_0" if name == "stem" else name.removeprefix("stage").replace("/", "_"))


def _head(head: LocalHead, width: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    narrow = width < WIDTHS[-1]
    features = int(width * (2 if narrow else 1) * head.width)
    for i in range(int(head.kind[0])):
        stride = 2 if narrow and i == 0 else 1
        convolution = nn.Conv2d(width, features, 3, stride, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(features), nn.ReLU()]
        width = features
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for _ in range(int(head.kind[2]) - 1):
        layers += [nn.Linear(width, int(head.feature_width * head.width)), nn.ReLU()]
        width = int(head.feature_width * head.width)
    return [*layers, nn.Linear(width, head.outputs)]
