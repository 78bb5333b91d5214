"""MAN and MAN++ as the settings and the names of a golden file describe them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kd_local.local import CutNetwork, Momentum, PixelScale, cut, man_loss_weights, man_number
from kd_local.models import create


def kind_of_head(weights: Mapping[str, np.ndarray], block: str) -> str:
    """The kind of a head of InfoPro, from the shapes of its weights; or that of MAN++."""
    head = [array for name, array in weights.items() if name.startswith(f"aux_classifier_{block}.head.")]
    convolutions, linears = (sum(array.ndim == ndim for array in head) for ndim in (4, 2))
    return "dgl_wide" if (convolutions, linears) == (3, 4) else f"{convolutions}c{linears}f"


def momentum_case(
    settings: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> tuple[CutNetwork, Callable[[Mapping[str, Any]], list[Any]]]:
    """The cut network; the unweighted losses of a file, from the metrics of all programs."""
    network, plus = create(settings["network"], classes=settings["classes"]), settings["method"] == "manpp"
    stem = ("stem",) if plus else ()
    boundaries = (*stem, *(f"stage{stage}/{block}" for stage, block in settings["module_ends"][:-1]))
    assert man_number(network, boundaries) == settings["table_K"]
    firsts = {name.split(".")[0] for name in weights}
    heads = {name.removeprefix("aux_classifier_") for name in firsts if name.startswith("aux_classifier_")}
    decodes = any(name.startswith("decoder_") for name in firsts)
    cut_network = cut(
        network,
        settings["modules"],
        classes=settings["classes"],
        boundaries=boundaries,
        context="R0",
        auxiliary=Momentum(
            momentum=settings["ema_momentum"], scale="trained" if plus else "fixed", faithful=plus and decodes
        ),
        head=kind_of_head(weights, min(heads - {"0_0"})),
        decoder=PixelScale(tuple(settings["mean"]), tuple(settings["std"])) if decodes else None,
        loss_scale=man_loss_weights(network, boundaries, settings["table_K"]),
    )
    *local, last = [module.name for module in cut_network.modules]
    terms = ("reconstruction_loss", "head_loss") if decodes else ("loss",)
    return cut_network, lambda metrics: [
        *(metrics[name][term] for name in local for term in terms), metrics[last]["loss"]
    ]  # fmt: skip
