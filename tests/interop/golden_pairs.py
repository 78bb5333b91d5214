"""HPFF and MLAAN with the settings and weights of a golden file. See `test_golden_successors.Case`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

from kd_local.interop import pairs_from_torch, pairs_to_torch
from kd_local.local import HPFF, MLAAN, PairRule, PairTraining, PixelScale, cut
from kd_local.local.mlaan import leaping_blocks
from kd_local.models import create

KNOWN_LEAPS = (("resnet32", 8), ("resnet32", 15), ("resnet110", 32))
"""The networks and numbers of modules for which the specification has leaping blocks."""


def pairs_case(settings: Mapping[str, Any], weights: Mapping[str, np.ndarray], optimizer: optax.GradientTransformation):
    """The fields of a `Case`, in order."""
    network = create(settings["network"], classes=settings["classes"])
    boundaries = list(map(_block, settings["module_ends"][:-1]))
    hpff = settings["method"] == "hpff"
    decoders = any(name.startswith("aux_decoder") for name in weights)
    cut_network = cut(
        network,
        settings["modules"],
        classes=settings["classes"],
        boundaries=boundaries,
        context="R0",
        head=_head(weights),
        decoder=PixelScale(tuple(settings["mean"]), tuple(settings["std"])) if decoders else None,
    )
    method = PairTraining(cut_network, _hpff(settings, decoders) if hpff else _mlaan(settings), optimizer)
    if (settings["network"], settings["modules"]) in KNOWN_LEAPS and not hpff:
        assert method.rule.leaps == tuple(leaping_blocks(network, boundaries, i) for i in range(len(boundaries)))
    pairs, kinds = [pair.name for pair, _ in method.pairs()], ("independent_loss", "reconstruction_loss", "head_loss")
    return (
        method,
        method.state(pairs_from_torch(method, weights, dtype=np.float64)),
        lambda variables: pairs_to_torch(method, variables),
        lambda metrics: [metrics[name]["loss"] for name in pairs],
        lambda metrics: [metrics[name][kind] for name in pairs for kind in kinds if kind in metrics[name]],
        lambda state, images: network.apply(method.network_variables(state), images, train=True)[0],
    )


def _hpff(settings: Mapping[str, Any], decoders: bool) -> PairRule:
    weights = {"weight_x": settings["weight_x"], "weight_y": settings["weight_y"]}
    if not decoders:
        return HPFF(**weights)
    ends = settings["loss_weights"]
    return HPFF(
        **weights,
        reconstruction_first=ends["reconstruction"][0],
        reconstruction_last=ends["reconstruction"][1],
        head_first=ends["cross_entropy"][0],
        head_last=ends["cross_entropy"][1],
    )


def _mlaan(settings: Mapping[str, Any]) -> PairRule:
    leaps = tuple(tuple(map(_block, blocks)) for blocks in settings["leap_blocks"])
    return MLAAN(
        weight_x=settings["weight_x"],
        weight_y=settings["weight_y"],
        momentum=settings["ema_momentum"],
        leaps=leaps,
    )


def _head(weights: Mapping[str, np.ndarray]) -> str:
    """The kind of the heads, from the numbers of their layers in PyTorch."""
    found = {}
    for name, array in weights.items():
        if match := re.fullmatch(r"net_classifier_\d+_\d+\.head\.(\d+)\.weight", name):
            found[int(match[1])] = array.ndim
    convolutions = [number for number, dimensions in found.items() if dimensions == 4]
    linears = [number for number, dimensions in found.items() if dimensions == 2]
    if not found:
        return "0c1f"
    return "dgl" if 1 in convolutions else f"{len(convolutions)}c{len(linears)}f"


def _block(pair: tuple[int, int]) -> str:
    return f"stage{pair[0]}/{pair[1]}" if pair[0] else "stem"
