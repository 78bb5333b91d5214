"""Files that this package writes, loaded in networks of PyTorch with the names of mdistiller and of torchvision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.interop import network_to_torch, write_state_dict
from kd_local.local import cut
from kd_local.models import create
from kd_local.networks import apply_block, of_block
from tests.support import tiny

torch = pytest.importorskip("torch")
nn = torch.nn


class BasicBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """With the names of torchvision's ResNet-18."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for stage in (1, 2, 3, 4):
            before, after = widths[stage - 1 : stage + 1]
            blocks = BasicBlock(before, after, 1 + (stage > 1)), BasicBlock(after, after, 1)
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


run = partial(jax.jit, static_argnums=0, static_argnames="train")(apply_block)


def compare(name, size, theirs, path):
    network = create(name, classes=5)
    variables = tiny.variables(network, 3)
    write_state_dict(path, network_to_torch(network, variables))
    theirs.load_state_dict(torch.load(path, weights_only=True))
    images = np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
    x = jnp.asarray(images)
    for block_name, block in network:
        x, _ = run(block, of_block(variables, block_name), x, train=False)
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(x, logits, rtol=0, atol=1e-4 * np.abs(x).max())


def test_a_cifar_resnet(tmp_path):
    from experiments.speed.torch_network import CutResNet

    theirs = CutResNet(cut(create("resnet8", classes=5), modules=1, classes=5), 5, 3)
    compare("resnet8", 16, theirs, tmp_path / "network.pth")


@pytest.mark.exhaustive
def test_an_imagenet_resnet(tmp_path):
    compare("resnet18", 64, ResNet18(5), tmp_path / "network.pth")
