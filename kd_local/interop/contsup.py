"""Converts weights of a cut CIFAR ResNet between the ContSup authors' code (PyTorch) and this package.

The authors' names, for the boundary after block B of stage S (the stem is 0, 0), which is boundary K, from 0:

    conv1, bn1, layerS.B.{conv1,bn1,conv2,bn2,downsample.0,downsample.1}, fc     the network
    aux_classifier_S_B.head.N                                                    the local head before the boundary
    decoder_S_B.decoder.N                                                        the decoder before the boundary
    cont_sup_node.encoder_K.encoder.N                                            the image encoder after it
    cont_sup_node.resencoder_K_R.encoder.N                                       the feature encoders after it

R is the number of a feature encoder; number 0 reads the most recent features. N is the index in an `nn.Sequential`.

Reference: github.com/Tab-ct/ContSup, the code of Yu et al. (arXiv 2312.07636).
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from kd_local.interop.auxiliaries import auxiliary_layers, basic_block, names_of_boundary, names_of_following
from kd_local.interop.layouts import Layer, conv_norm, names, read_layers, refuse_others, write_layers
from kd_local.local.contexts import FeatureEncoder, ImageEncoder
from kd_local.local.cut_network import CutNetwork
from kd_local.local.module import LocalModule
from kd_local.models.ends import Classifier, Stem
from kd_local.models.layers import DType
from kd_local.models.resnet import BasicBlock
from kd_local.networks import Variables

# The authors' code always builds decoders and encoders, also if it does not use them.
_BUILT_ALWAYS = re.compile(r"decoder_\d+_\d+\.|cont_sup_node\.(encoder_\d+|resencoder_\d+_\d+)\.")
_BUILT_BY_MAN = re.compile(r"(decoder|aux_classifier)_\d+_\d+\.")
_STEM = "conv1.weight"


def from_torch(cut_network: CutNetwork, arrays: Mapping[str, Any], *, dtype: DType = None) -> dict[str, Variables]:
    """Variables of a cut network from the weights of the authors' code, with batch statistics.

    Args:
        cut_network: a cut CIFAR ResNet.
        arrays: arrays by the authors' names, in PyTorch's layouts, such as `read_state_dict` returns. Decoders and
            encoders that the cut network does not have are ignored: the authors' code always builds them.
        dtype: dtype of the result; None keeps each array's dtype.

    Returns:
        Variables with the structure of `CutNetwork.init`, as numpy arrays.

    Raises:
        ValueError: an array is missing, has another shape or is unexpected (the error names the first), or the authors'
            code has no such network.
    """
    stem = np.shape(arrays.get(_STEM, ()))
    shapes = _shapes(cut_network, stem[1] if len(stem) == 4 else 3)
    known, variables = list[str](), dict[str, Variables]()
    for number, module in enumerate(cut_network.modules):
        layers, merged = _layers(cut_network, number), _merged(module, shapes)
        known += names(layers, merged)
        read = read_layers(layers, arrays, merged, dtype=dtype)
        averages = _averages(module)
        variables |= {name: {"params": read["params"][name], "batch_stats": {}} for name in averages}
        params = {name: value for name, value in read["params"].items() if name not in averages}
        variables[module.name] = {**read, "params": params}
    built = _BUILT_BY_MAN if names_of_following(cut_network) else _BUILT_ALWAYS
    refuse_others({name: array for name, array in arrays.items() if name in known or not built.match(name)}, known)
    return variables


def to_torch(cut_network: CutNetwork, variables: Mapping[str, Variables]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: arrays by the authors' names, in PyTorch's layouts, with unchanged dtypes.

    Modules that the authors' code builds without using them are missing: load with `strict=False`.

    Raises:
        ValueError: the variables do not fit the cut network, or the authors' code has no such network.
    """
    parts = [name for module in cut_network.modules for name in (module.name, *_averages(module))]
    missing = [name for name in parts if name not in variables]
    if missing:
        raise ValueError(f"variables of {missing[0]} are missing: give those of {', '.join(parts)}")
    shapes = _shapes(cut_network, _channels(variables[cut_network.modules[0].name]))
    arrays: dict[str, np.ndarray] = {}
    for number, module in enumerate(cut_network.modules):
        arrays |= write_layers(_layers(cut_network, number), _merged(module, variables), _merged(module, shapes))
    return arrays


def _averages(module: LocalModule) -> tuple[str, ...]:
    """The names of the parts with the averages of a module."""
    return tuple(part.program.name for part in module.after)


def _merged(module: LocalModule, variables: Mapping[str, Variables]) -> Variables:
    """The variables of a module, and the parameters of its averages by the names of their parts."""
    own = variables[module.name]
    averages = {name: variables[name]["params"] for name in _averages(module)}
    return {**own, "params": {**own["params"], **averages}}


def _channels(first: Mapping[str, Any]) -> int:
    kernel = flatten_dict(first).get(("params", "blocks", "0", "conv", "conv", "kernel"))
    return kernel.shape[2] if kernel is not None and kernel.ndim == 4 else 3


def _shapes(cut_network: CutNetwork, channels: int) -> dict[str, Variables]:
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)  # no parameter depends on height and width
    return jax.eval_shape(lambda: cut_network.init(jax.random.key(0), images))


def _layers(cut_network: CutNetwork, number: int) -> list[Layer]:
    module, layers = cut_network.modules[number], list[Layer]()
    classifier = "fc64" if names_of_following(cut_network) else "fc"
    for index, (name, block) in enumerate(zip(module.names, module.blocks.modules, strict=True)):
        layers += _block(name, block, ("blocks", str(index)), classifier)
    slot = 0
    for index, network in enumerate(module.contexts):
        path = (f"context{index}",)
        if isinstance(network, FeatureEncoder):
            encoder = f"cont_sup_node.resencoder_{number - 1}_{slot}.encoder"
            layers += conv_norm(f"{encoder}.0", f"{encoder}.1", (*path, "conv"))
            slot += 1
        elif isinstance(network, ImageEncoder) and not network.pool_first:
            encoder = f"cont_sup_node.encoder_{number - 1}.encoder"
            layers += conv_norm(f"{encoder}.0", f"{encoder}.1", (*path, "conv1"))
            layers += conv_norm(f"{encoder}.3", f"{encoder}.4", (*path, "conv2"))
        else:
            raise ValueError(
                f"context network {index} of {module.name} ({type(network).__name__}) is not in the authors' code: "
                "cut with image_encoder='full'"
            )
    if module.auxiliary is not None:
        layers += auxiliary_layers(cut_network, number)
    if module.similarity is not None:
        similarity = f"decoder_{names_of_boundary(cut_network, number)}.decoder.0"
        layers.append(Layer(similarity, ("similarity", "conv"), "convolution"))
    if module.reconstruction is not None:
        decoder = f"decoder_{names_of_boundary(cut_network, number)}.decoder"
        layers += conv_norm(f"{decoder}.0", f"{decoder}.1", ("decoder", "conv1"))
        layers.append(Layer(f"{decoder}.3", ("decoder", "conv2"), "convolution"))
    return layers


def _block(name: str, block: nn.Module, path: tuple[str, ...], classifier: str) -> tuple[Layer, ...]:
    match block:
        case Stem():
            return conv_norm("conv1", "bn1", (*path, "conv"))
        case BasicBlock() if re.fullmatch(r"stage\d+/\d+", name):
            block_name = "layer" + name.removeprefix("stage").replace("/", ".")
            return basic_block(block_name, path)
        case Classifier():
            return (Layer(classifier, (*path, "linear", "dense"), "linear"),)
    raise ValueError(f"block {name!r} ({type(block).__name__}) is not in the authors' code: cut a CIFAR ResNet")
