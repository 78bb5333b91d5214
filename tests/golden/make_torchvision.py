"""Makes torchvision.npz: logits of torchvision's and timm's networks in float64, for weights made from their names.

    python -m tests.golden.make_torchvision

Needs torch, torchvision and timm. For each network the file has `NAME_names` and `NAME_shapes` of the state dict, and
`NAME_logits` in evaluation mode for `numpy.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3))`. The transformers
and the classifier of the VGGs have smaller widths than the usual ones.
"""

import json
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision

from tests.support.weights import weights_by_name

CLASSES = 7


def torchvision_vgg(depth: int) -> torch.nn.Module:
    network = getattr(torchvision.models, f"vgg{depth}_bn")(num_classes=CLASSES)
    network.classifier = torch.nn.Sequential(
        torch.nn.Linear(25088, 8), torch.nn.ReLU(), torch.nn.Dropout(),
        torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, CLASSES),
    )  # fmt: skip
    return network


def timm_vgg(depth: int) -> torch.nn.Module:
    network = timm.create_model(f"vgg{depth}_bn", num_classes=CLASSES)
    network.pre_logits.fc1, network.pre_logits.fc2 = torch.nn.Conv2d(512, 8, 7), torch.nn.Conv2d(8, 8, 1)
    network.head.fc = torch.nn.Linear(8, CLASSES)
    return network


NETWORKS = {
    "torchvision/vit": (16, torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=4, num_heads=3, hidden_dim=24, mlp_dim=96, num_classes=CLASSES)),
    "timm/vit": (16, timm.models.VisionTransformer(
        img_size=16, patch_size=8, depth=4, num_heads=3, embed_dim=24, num_classes=CLASSES)),
    "torchvision/shufflenet_v2_x0_5": (32, torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES)),
    "torchvision/vgg11_bn": (32, torchvision_vgg(11)),
    "timm/vgg11_bn": (32, timm_vgg(11)),
}  # fmt: skip


def main() -> None:
    arrays = {}
    for name, (size, network) in NETWORKS.items():
        shapes = {key: tuple(x.shape) for key, x in network.state_dict().items() if "num_batches" not in key}
        state = {key: torch.tensor(x) for key, x in weights_by_name(shapes).items()}
        network.load_state_dict(state, strict=False)
        images = np.random.default_rng(0).standard_normal((2, size, size, 3))
        with torch.no_grad():
            logits = network.double().eval()(torch.tensor(images.transpose(0, 3, 1, 2)))
        arrays |= {
            f"{name}_names": np.array(list(shapes)),
            f"{name}_shapes": np.array([json.dumps(shape) for shape in shapes.values()]),
            f"{name}_size": size,
            f"{name}_logits": logits.numpy(),
        }
    np.savez_compressed(Path(__file__).with_name("torchvision.npz"), **arrays)


if __name__ == "__main__":
    main()
