"""Names of the layers of vision transformers with a class token, in torchvision and in timm.

    torchvision    class_token, conv_proj, encoder.pos_embedding, encoder.layers.encoder_layer_B.{ln_1,self_attention,
                   ln_2,mlp.0,mlp.3}, encoder.ln, heads.head
    timm, DeiT     cls_token, patch_embed.proj, pos_embed, blocks.B.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2},
                   norm, head

Query, key and value are one tensor in both.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kd_local.interop.layouts import Layer
from kd_local.models.class_token import TokenEmbedding
from kd_local.networks import Network

_INPUTS = ("query", "key", "value")
_POSITIONS = ("encoder.pos_embedding", "pos_embed")


def transformer_layers(network: Network, arrays: Mapping[str, Any] | None = None) -> list[Layer]:
    """The layers with the names of `arrays`; if `arrays` is None, with torchvision's names."""
    timm = arrays is not None and "cls_token" in arrays
    stem = ("cls_token", "patch_embed.proj", "pos_embed") if timm else ("class_token", "conv_proj", _POSITIONS[0])
    layers = [
        Layer(stem[0], ("stem", "class_token"), "parameter"),
        Layer(stem[1], ("stem",), "convolution"),
        Layer(stem[2], ("stem", "positions"), "parameter"),
    ]
    for index, name in enumerate(network.names[1:-1]):
        layers += (
            _timm_block(f"blocks.{index}", name) if timm else _block(f"encoder.layers.encoder_layer_{index}", name)
        )
    norm, head = ("norm", "head") if timm else ("encoder.ln", "heads.head")
    return [*layers, Layer(norm, ("head", "norm"), "layer_norm"), Layer(head, ("head", "linear"), "linear")]


def image_size(network: Network, arrays: Mapping[str, Any]) -> int:
    """The side of the square images that the weights' positions were learned for; 0 if there are no positions."""
    stem = network.modules[0]
    found = [np.shape(arrays[name]) for name in _POSITIONS if name in arrays]
    if not found or len(found[0]) != 3 or not isinstance(stem, TokenEmbedding):
        return 0
    return math.isqrt(max(found[0][1] - 1, 1)) * stem.patch_size


def _block(theirs: str, name: str) -> list[Layer]:
    attention = f"{theirs}.self_attention"
    return [
        Layer(f"{theirs}.ln_1", (name, "norm1"), "layer_norm"),
        *(Layer(f"{attention}.in_proj", (name, "attention", kind), "attention_input", (i, 3), "_")
          for i, kind in enumerate(_INPUTS)),
        Layer(f"{attention}.out_proj", (name, "attention", "out"), "attention_output"),
        Layer(f"{theirs}.ln_2", (name, "norm2"), "layer_norm"),
        Layer(f"{theirs}.mlp.0", (name, "linear1"), "linear"),
        Layer(f"{theirs}.mlp.3", (name, "linear2"), "linear"),
    ]  # fmt: skip


def _timm_block(theirs: str, name: str) -> list[Layer]:
    return [
        Layer(f"{theirs}.norm1", (name, "norm1"), "layer_norm"),
        *(Layer(f"{theirs}.attn.qkv", (name, "attention", kind), "attention_input", (i, 3))
          for i, kind in enumerate(_INPUTS)),
        Layer(f"{theirs}.attn.proj", (name, "attention", "out"), "attention_output"),
        Layer(f"{theirs}.norm2", (name, "norm2"), "layer_norm"),
        Layer(f"{theirs}.mlp.fc1", (name, "linear1"), "linear"),
        Layer(f"{theirs}.mlp.fc2", (name, "linear2"), "linear"),
    ]  # fmt: skip
