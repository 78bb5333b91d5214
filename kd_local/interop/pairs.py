"""Converts weights of HPFF and MLAAN between their authors' code (PyTorch) and this package.

The authors' names, for a pair whose second module ends with block B of stage S, at boundary I, counted from 0:

    conv1, bn1, layerS.B.{conv1,bn1,conv2,bn2,downsample.0,downsample.1}, fc64     the network
    net_classifier_S_B                                                             the head of the second module alone
    aux_classifier_S_B.head.N, aux_decoder_S_B.decoders.Q.N                        HPFF: head and decoders of the pair
    aux_classifier_S_B_I.fc, Aug_Net.I.J, EMA_Net.I.J                              MLAAN: head and leaping blocks J

N is the index in an `nn.Sequential`. Q is 0 to 3: top left, top right, bottom left, bottom right.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_local.interop.auxiliaries import basic_block, boundary_name, head_layers
from kd_local.interop.layouts import Layer, Path, conv_norm, names, read_layers, refuse_others, write_layers
from kd_local.local.heads import LocalHead
from kd_local.local.hpff import PatchDecoder
from kd_local.local.mlaan import LeapingNetwork
from kd_local.local.pair import INDEPENDENT_HEAD, Pair
from kd_local.local.pairs import PairTraining, average_name
from kd_local.models.ends import Classifier, Stem
from kd_local.models.resnet import BasicBlock
from kd_local.networks import Variables
from kd_local.state import variables_of

_STEM = "conv1.weight"


def pairs_from_torch(method: PairTraining, arrays: Mapping[str, Any], *, dtype: Any = None) -> dict[str, Variables]:
    """Variables of each part of the state, from the weights of the authors' code; see `PairTraining.state`.

    Args:
        method: HPFF or MLAAN for a CIFAR ResNet.
        arrays: arrays by the authors' names, in PyTorch's layouts, such as `read_state_dict` returns. Networks that the
            authors' code builds and never uses are ignored: those of boundary 0, and frozen copies but the first.
        dtype: dtype of the result; None keeps each array's dtype.

    Returns:
        `{part: {"params": ..., "batch_stats": ...}}`, as numpy arrays.

    Raises:
        ValueError: an array is missing, has another shape or is unexpected (the error names the first), or the authors'
            code has no such network.
    """
    stem = np.shape(arrays.get(_STEM, ()))
    shapes = _shapes(method, stem[1] if len(stem) == 4 else 3)
    described = _layers(method)
    variables = {name: read_layers(layers, arrays, shapes[name], dtype=dtype) for name, layers in described.items()}
    known = {tensor for name, layers in described.items() for tensor in names(layers, shapes[name])}
    opening = boundary_name(method.cut_network.boundaries[0])
    built = re.compile(rf"EMA_Net\.|Aug_Net\.0\.|(net_classifier|aux_classifier|aux_decoder)_{opening}[._]")
    refuse_others({name: array for name, array in arrays.items() if name in known or not built.match(name)}, known)
    return variables


def pairs_to_torch(method: PairTraining, variables: Mapping[str, Variables]) -> dict[str, np.ndarray]:
    """The inverse of `pairs_from_torch`: arrays by the authors' names, in PyTorch's layouts, with unchanged dtypes.

    Modules that the authors' code builds without using them are missing: load with `strict=False`.

    Raises:
        ValueError: the variables do not fit the method, or the authors' code has no such network.
    """
    described = _layers(method)
    for name in described:
        if name not in variables:
            raise ValueError(f"variables of {name} are missing: give those of {', '.join(described)}")
    first = variables[method.cut_network.modules[0].name]["params"]["blocks"]["0"]
    shapes = _shapes(method, first["conv"]["conv"]["kernel"].shape[2])
    arrays: dict[str, np.ndarray] = {}
    for name, layers in described.items():
        arrays |= write_layers(layers, variables[name], shapes[name])
    return arrays


def _shapes(method: PairTraining, channels: int) -> dict[str, Variables]:
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)  # no parameter depends on height and width
    state = jax.eval_shape(lambda: method.init(jax.random.key(0), images))
    return {name: variables_of(part) for name, part in state.items()}


def _layers(method: PairTraining) -> dict[str, list[Layer]]:
    """The layers of each part of the state."""
    layers: dict[str, list[Layer]] = {}
    for module in method.cut_network.modules:
        layers[module.name] = []
        for index, (name, block) in enumerate(zip(module.names, module.blocks.modules, strict=True)):
            layers[module.name] += _block(name, block, ("blocks", str(index)))
    for pair, attachment in method.pairs():
        if attachment is not None:
            layers[pair.name] += _attached(pair, boundary_name(method.cut_network.boundaries[pair.number + 1]))
            if attachment.average is not None:
                copies = [f"EMA_Net.{pair.number + 1}.{i}" for i in range(len(attachment.average.blocks))]
                layers[average_name(pair)] = [
                    layer for i, copy in enumerate(copies) for layer in basic_block(copy, (str(i),))
                ]
    return layers


def _attached(pair: Pair, boundary: str) -> list[Layer]:
    layers = _head(pair.head, f"net_classifier_{boundary}", INDEPENDENT_HEAD)
    if isinstance(pair.auxiliary, LeapingNetwork):
        for i, block in enumerate(pair.auxiliary.blocks):
            _check_block(f"leap{i}", block)
            layers += basic_block(f"Aug_Net.{pair.number + 1}.{i}", (f"leap{i}",))
        layers += basic_block(f"EMA_Net.{pair.number + 1}.0", ("average",))
        return layers + _head(pair.auxiliary.head, f"aux_classifier_{boundary}_{pair.number + 1}", "head")
    layers += _head(getattr(pair.auxiliary, "network", None), f"aux_classifier_{boundary}", "head")
    if pair.reconstruction is not None:
        decoder = pair.reconstruction.network
        assert isinstance(decoder, PatchDecoder)
        if not decoder.own or decoder.n != 2:
            raise ValueError("the decoder is not in the authors' code: use HPFF(patches=2, faithful=True)")
        for i in range(4):
            name, path = f"aux_decoder_{boundary}.decoders.{i}", ("decoder", f"decoder{i}")
            layers += conv_norm(f"{name}.0", f"{name}.1", (*path, "conv1"))
            layers.append(Layer(f"{name}.3", (*path, "conv2"), "convolution"))
    return layers


def _head(head: Any, name: str, ours: str) -> list[Layer]:
    if isinstance(head, LocalHead) and head.kind == "0c1f":
        return [Layer(f"{name}.fc", (ours, "linear0", "dense"), "linear")]
    return [replace(layer, path=(ours, *layer.path[1:])) for layer in head_layers(head, f"{name}.head")]


def _block(name: str, block: Any, path: Path) -> tuple[Layer, ...]:
    if isinstance(block, Stem):
        return conv_norm("conv1", "bn1", (*path, "conv"))
    if isinstance(block, Classifier):
        return (Layer("fc64", (*path, "linear", "dense"), "linear"),)
    _check_block(name, block)
    return basic_block("layer" + name.removeprefix("stage").replace("/", "."), path)


def _check_block(name: str, block: Any) -> None:
    if not isinstance(block, BasicBlock):
        raise ValueError(f"block {name!r} ({type(block).__name__}) is not in the authors' code: cut a CIFAR ResNet")
