"""Converts weights of the zoo's networks from and to PyTorch, with the names of five code bases.

    ResNets, ShuffleNets   conv1, bn1, layerS.B.{convI,bnI}, a shortcut, a last layer
        mdistiller, torchvision, ContSup    layerS.B.downsample.{0,1} and fc
        mdistiller's four-stage ones        layerS.B.shortcut.{0,1} and linear
        its ShuffleNets                     linear, and conv2, bn2 before it in version 2
        akamaster's                         linear; the shortcuts have no weights
    Wide ResNets           conv1, blockS.layer.B.{bn1,conv1,bn2,conv2,convShortcut}, bn1, fc
        torchvision's ShuffleNets           conv1.{0,1}, stageS.B.branchI.{0,1, ...}, conv5.{0,1}, fc; stages from 2
    VGG                    blockS.{0,1, 3,4, ...}, classifier
        torchvision's                       features.{0,1, 4,5, ...}, classifier.{0,3,6}
        timm's                              features.{0,1, 4,5, ...}, pre_logits.{fc1,fc2}, head.fc
    MobileNet              model.B.{0,1, 3,4}, fc
    MobileNetV2            conv1.{0,1}, blocks.G.B.conv.{0,1, 3,4, 6,7}, conv2.{0,1}, classifier.0
        torchvision's      features.B.conv.{0.0,0.1, 1.0,1.1, 2,3}, features.18.{0,1}, classifier.1
    Vision transformers    see `transformers.py`

Stages S and blocks B are the same as in our names, except for MobileNets: their names number all blocks in one sequence
(torchvision from 1, the stem is 0), or within groups G of equal width. The code base of a file is detected from its
names.

Reference: github.com/megvii-research/mdistiller, github.com/akamaster/pytorch_resnet_cifar10,
github.com/pytorch/vision and github.com/huggingface/pytorch-image-models (timm).
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from kd_local.interop.layouts import Layer, conv_norm, read_all, write_layers
from kd_local.interop.transformers import image_size, transformer_layers
from kd_local.models.class_token import TokenEmbedding
from kd_local.models.ends import Stem
from kd_local.models.imagenet_resnet import Bottleneck
from kd_local.models.layers import DType
from kd_local.models.mobilenet import CappedStem, InvertedResidual, SeparableBlock
from kd_local.models.resnet import BasicBlock
from kd_local.models.shufflenet import DownUnit, ShuffleUnit
from kd_local.models.vgg import ConvBlock, ThreeLinearClassifier
from kd_local.models.vision_transformer import PatchEmbedding
from kd_local.models.wide_resnet import ConvStem, PreActivationBlock
from kd_local.networks import Network, Variables

_GROUPS = (1, 2, 3, 4, 3, 3, 1)  # MobileNetV2's blocks of equal width
_LINEAR = ("head", "linear", "dense")


def load_network(network: Network, arrays: Mapping[str, Any], *, dtype: DType = None) -> Variables:
    """Variables of a network from PyTorch's weights, with batch statistics.

    Args:
        network: a whole network of the zoo.
        arrays: arrays by the names of mdistiller, akamaster's ResNets, torchvision, timm or ContSup, in PyTorch's
            layouts, such as `read_state_dict` returns. `num_batches_tracked` is ignored.
        dtype: dtype of the result; None keeps each array's dtype.

    Returns:
        Variables with the structure of `Network.init`, as numpy arrays.

    Raises:
        ValueError: an array is missing, has another shape or is unexpected (the error names the first), or the network
            is not one of the zoo.
    """
    arrays = _flattened(arrays)
    layers = _layers(network, arrays)
    first = next((layer.name for layer in layers if layer.kind == "convolution"), "")
    kernel = np.shape(arrays.get(f"{first}.weight", ()))
    shapes = _shapes(network, kernel[1] if len(kernel) == 4 else 3, image_size(network, arrays))
    try:
        return read_all(layers, arrays, shapes, dtype=dtype)
    except ValueError as error:
        if "stage4/0" not in network.names and re.match(r"layer[23]\.0\.\w+\.0\.weight is missing", str(error)):
            raise ValueError(f"{error}; for shortcuts without weights use shortcut='padding'") from error
        raise


def network_to_torch(network: Network, variables: Variables) -> dict[str, np.ndarray]:
    """The inverse of `load_network`: arrays by the names of `code_base`, in PyTorch's layouts, with unchanged dtypes.

    Raises:
        ValueError: the variables do not fit the network, or the network is not one of the zoo.
    """
    layers = _layers(network)
    flat = flatten_dict(variables)
    first = next(layer for layer in layers if layer.kind == "convolution")
    kernel = np.shape(flat.get(("params", *first.path, "kernel"), np.zeros((1, 1, 3, 1))))
    size = 0
    if (positions := flat.get(("params", "stem", "positions"))) is not None:
        size = image_size(network, {"pos_embed": positions})
    return write_layers(layers, variables, _shapes(network, kernel[2], size))


def code_base(network: Network) -> str | None:
    """The code base in PyTorch whose names `network_to_torch` writes; None if none has this network.

    It is torchvision for networks of ImageNet and vision transformers with a class token, pytorch_resnet_cifar10
    (akamaster) for ResNets with `shortcut="padding"`, and mdistiller for all others, MobileNetV1 included.
    """
    match network.modules[:2]:
        case (PatchEmbedding(), _):
            return None
        case (_, BasicBlock(shortcut="padding")):
            return "pytorch_resnet_cifar10"
        case (TokenEmbedding(), _) | (_, InvertedResidual(expansion=None)):
            return "torchvision"
    of_imagenet = getattr(network.modules[1], "pool_first", False)
    return "torchvision" if of_imagenet or isinstance(network.modules[-1], ThreeLinearClassifier) else "mdistiller"


def classes_of(network: Network, arrays: Mapping[str, Any]) -> int | None:
    """The number of classes of PyTorch's weights, by the bias of the network's last layer; None if it is missing.

    Raises:
        ValueError: the network is not one of the zoo.
    """
    bias = arrays.get(f"{_layers(network, arrays)[-1].name}.bias")
    return None if bias is None or np.ndim(bias) != 1 else len(bias)


def _shapes(network: Network, channels: int, size: int = 0) -> Variables:
    size = size or 32  # only positions depend on it
    if isinstance(network.modules[0], TokenEmbedding):
        size = max(size, network.modules[0].patch_size)
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), images))


def _flattened(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays with timm's convolutions in the head of VGG as linear layers, which have the same numbers in order."""
    names = [name for name in ("pre_logits.fc1.weight", "pre_logits.fc2.weight") if name in arrays]
    return {**arrays, **{name: np.asarray(arrays[name]).reshape(len(arrays[name]), -1) for name in names}}


def _layers(network: Network, arrays: Mapping[str, Any] | None = None) -> list[Layer]:
    """The layers with the names of `arrays`; if None, with those of `code_base`."""
    if isinstance(network.modules[0], PatchEmbedding):
        raise ValueError(
            "torchvision and timm have no vision transformer with fixed positions and pooled maps: for their weights "
            "use vit_ti_16, vit_s_16, vit_b_16, vit_b_32, vit_l_16 or vit_l_32, which have a class token"
        )
    stems = Stem | ConvStem | CappedStem | TokenEmbedding
    begins = network.names[0] == "stage0/0" or isinstance(network.modules[0], stems)
    if not begins or network.names[-1] != "head" or len(network) < 3:
        raise ValueError(
            f"blocks {network.names[0]} to {network.names[-1]} are not a whole network: load the whole network, and "
            "use network.select(variables) for some of its blocks"
        )
    if isinstance(network.modules[0], TokenEmbedding):
        return transformer_layers(network, arrays)
    match network.modules[1]:
        case DownUnit(pool_first=True):
            return _imagenet_shufflenet(network)
        case BasicBlock() | Bottleneck() | ShuffleUnit() | DownUnit():
            return _resnet(network, arrays)
        case PreActivationBlock():
            return _wide_resnet(network)
        case ConvBlock():
            return (
                _vgg(network)
                if not isinstance(network.modules[-1], ThreeLinearClassifier)
                else _imagenet_vgg(network, timm=arrays is not None and "head.fc.weight" in arrays)
            )
        case SeparableBlock():
            return _mobilenetv1(network)
        case InvertedResidual():
            return _mobilenetv2(network)
    kind = type(network.modules[1]).__name__
    raise ValueError(f"block {network.names[1]!r} ({kind}) is not of the zoo: describe the layers for read_layers")


def _resnet(network: Network, arrays: Mapping[str, Any] | None) -> list[Layer]:
    shuffles = isinstance(network.modules[1], ShuffleUnit | DownUnit)
    small_images = "stage4/0" in network.names and not getattr(network.modules[1], "pool_first", False)
    linear = "linear" if shuffles or small_images or code_base(network) == "pytorch_resnet_cifar10" else "fc"
    shortcut = "shortcut" if small_images else "downsample"
    if arrays is not None:
        linear = "linear" if "linear.weight" in arrays else "fc"
        shortcut = "shortcut" if any(".shortcut." in name for name in arrays) else "downsample"
    layers = [*conv_norm("conv1", "bn1", ("stem", "conv"))]
    for name in network.names[1:-1]:
        layer = "layer" + name.removeprefix("stage").replace("/", ".")
        for i in range(1, 6):
            layers += conv_norm(f"{layer}.conv{i}", f"{layer}.bn{i}", (name, f"conv{i}"))
        layers += conv_norm(f"{layer}.{shortcut}.0", f"{layer}.{shortcut}.1", (name, "projection"))
    return [*layers, *conv_norm("conv2", "bn2", ("head", "conv")), Layer(linear, _LINEAR, "linear")]


def _wide_resnet(network: Network) -> list[Layer]:
    layers = [Layer("conv1", ("stem", "conv"), "convolution")]
    for name in network.names[1:-1]:
        stage, index = name.removeprefix("stage").split("/")
        block = f"block{stage}.layer.{index}"
        layers += [
            Layer(f"{block}.bn1", (name, "norm"), "batch_norm"),
            *conv_norm(f"{block}.conv1", f"{block}.bn2", (name, "conv1")),
            Layer(f"{block}.conv2", (name, "conv2"), "convolution"),
            Layer(f"{block}.convShortcut", (name, "projection"), "convolution"),
        ]
    return [*layers, Layer("bn1", ("head", "norm"), "batch_norm"), Layer("fc", _LINEAR, "linear")]


def _vgg(network: Network) -> list[Layer]:
    layers: list[Layer] = []
    for name in network.names[:-1]:
        stage, index = name.removeprefix("stage").split("/")
        place = 3 * int(index)  # convolution, batch normalisation, ReLU
        layers += conv_norm(f"block{stage}.{place}", f"block{stage}.{place + 1}", (name, "conv"))
    return [*layers, Layer("classifier", _LINEAR, "linear")]


def _imagenet_vgg(network: Network, *, timm: bool) -> list[Layer]:
    layers: list[Layer] = []
    place = 0
    for name in network.names[:-1]:
        place += 1 if name.endswith("/0") and place else 0  # the pooling
        layers += conv_norm(f"features.{place}", f"features.{place + 1}", (name, "conv"))
        place += 3  # convolution, batch normalisation, ReLU
    linears = (
        ("pre_logits.fc1", "pre_logits.fc2", "head.fc") if timm else ("classifier.0", "classifier.3", "classifier.6")
    )
    ours = ("hidden1", "hidden2", "linear")
    return [
        *layers,
        *(Layer(theirs, ("head", own, "dense"), "linear") for theirs, own in zip(linears, ours, strict=True)),
    ]


def _imagenet_shufflenet(network: Network) -> list[Layer]:
    layers = [*conv_norm("conv1.0", "conv1.1", ("stem", "conv"))]
    for name in network.names[1:-1]:
        stage, index = name.removeprefix("stage").split("/")
        block = f"stage{int(stage) + 1}.{index}"
        # Depthwise convolutions have no ReLU after their normalisation.
        places = [("branch2", 0), ("branch2", 3), ("branch2", 5)]
        if index == "0":
            places = [("branch1", 0), ("branch1", 2), *places]
        for i, (branch, place) in enumerate(places, start=1):
            layers += conv_norm(f"{block}.{branch}.{place}", f"{block}.{branch}.{place + 1}", (name, f"conv{i}"))
    return [*layers, *conv_norm("conv5.0", "conv5.1", ("head", "conv")), Layer("fc", _LINEAR, "linear")]


def _mobilenetv1(network: Network) -> list[Layer]:
    layers = [*conv_norm("model.0.0", "model.0.1", (network.names[0], "conv"))]
    for index, name in enumerate(network.names[1:-1], start=1):
        layers += conv_norm(f"model.{index}.0", f"model.{index}.1", (name, "depthwise"))
        layers += conv_norm(f"model.{index}.3", f"model.{index}.4", (name, "pointwise"))
    return [*layers, Layer("fc", _LINEAR, "linear")]


def _mobilenetv2(network: Network) -> list[Layer]:
    first = network.modules[1]
    torchvision = isinstance(first, InvertedResidual) and first.expansion is None
    stem, last, classifier = (
        ("features.0", "features.18", "classifier.1") if torchvision else ("conv1", "conv2", "classifier.0")
    )
    places = [f"{group}.{index}" for group, count in enumerate(_GROUPS) for index in range(count)]
    layers = [*conv_norm(f"{stem}.0", f"{stem}.1", ("stem", "conv"))]
    for number, (name, place) in enumerate(zip(network.names[1:-1], places, strict=True), start=1):
        block = f"features.{number}.conv" if torchvision else f"blocks.{place}.conv"
        pairs = [("0", "1"), ("3", "4"), ("6", "7")]
        if torchvision:
            pairs = [("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")]
            if number == 1:  # no expansion
                pairs = [("", ""), ("0.0", "0.1"), ("1", "2")]
        for (convolution, norm), layer in zip(pairs, ("expand", "depthwise", "project"), strict=True):
            layers += conv_norm(f"{block}.{convolution}", f"{block}.{norm}", (name, layer))
    return [
        *layers,
        *conv_norm(f"{last}.0", f"{last}.1", ("head", "conv")),
        Layer(classifier, _LINEAR, "linear"),
    ]
