"""The config keys of local learning."""

from ml_collections.config_dict import placeholder

from experiments.configs.description import Group, Key, names_with_commas, when
from experiments.configs.objectives import AUXILIARIES
from experiments.configs.uses import (
    CONTSUP,
    CUT,
    CUT_MODULES,
    DECODED,
    HIDDEN,
    IMAGE_CONTEXT,
    MODULES,
    NO_BUDGET,
    ONE_OF_LOSSES,
    REMAT,
    SEVERAL_MODULES,
    WIDE,
    WITH_A_HEAD,
)
from experiments.from_config.numbers import numbers
from kd_local.choices.local import HEADS, IMAGE_ENCODERS, LOSSES, REMATERIALIZABLE, check_loss_scale, read_context
from kd_local.choices.local import RANGES as ARGUMENTS
from kd_local.ranges import Choice, Switch, Text
from kd_local.sizes import parse_bytes


def _loss_scale(text: str) -> None:
    if text != "published":
        check_loss_scale(numbers("local.loss_scale", text, "'published', or four numbers", "5,0.05,0.2,0.5"))


_REMAT = Text(
    "auto, none, or names with commas between", names_with_commas("name in remat", REMATERIALIZABLE, "auto", "none")
)
LOCAL: Group = {
    "modules": Key(4, ARGUMENTS["modules"], "number K of gradient-isolated modules", (CUT, NO_BUDGET)),
    "context": Key("R1E", Text("R0, E, Rn or RnE with n from 1", read_context), "context supply", SEVERAL_MODULES),
    "boundaries": Key(
        "equal",
        Text("equal, balanced, published, single, man, man_plus, stages, or blocks"),
        "`equal` (layers), `balanced` (memory), `published` (memory), `single` (blocks), `man` (MAN, HPFF, MLAAN), "
        "`man_plus` (MAN++), `stages` (after each but the stem), or blocks: `stem,stage1/2`",
        CUT_MODULES,
    ),
    "image_encoder": Key(
        "full",
        Choice("image encoder", IMAGE_ENCODERS),
        "context network of E: `full` (the paper's), or `pooled`, at a third of the cost",
        (*SEVERAL_MODULES, IMAGE_CONTEXT),
    ),
    "auxiliary": Key(
        "head",
        Choice("auxiliary network", AUXILIARIES),
        "networks between a module's output and its local loss: a head alone, those of a later method, or a teacher's "
        "remaining blocks",
        SEVERAL_MODULES,
    ),
    "head": Key(
        "1c2f",
        Choice("head", HEADS),
        "`NcMf`: N convolutions, M linear layers (InfoPro, ContSup); `dgl`: DGL's; `dgl_wide`: MAN++'s; `pool`: "
        "PredSim's",
        (*CUT_MODULES, WITH_A_HEAD),
    ),
    "loss": Key("softmax", Choice("local loss", LOSSES), "local loss", (*SEVERAL_MODULES, ONE_OF_LOSSES)),
    "decoder": Key(
        False, Switch(), "adds InfoPro's reconstruction of the image to each local loss", (DECODED, MODULES)
    ),
    "loss_scale": Key(
        "published",
        Text("published, or four numbers", _loss_scale),
        "weights of reconstruction and head at the first and at the last boundary: `5,0.05,0.2,0.5`; `published` with "
        "`local.auxiliary=momentum`: those of MAN",
        (*SEVERAL_MODULES, when("local.decoder", True)),
    ),
    "aux_width": Key(
        1.0,
        ARGUMENTS["aux_width"],
        "multiplies the channels of heads, decoders and image encoders",
        (*CUT_MODULES, WIDE),
    ),
    "feature_width": Key(
        128,
        ARGUMENTS["feature_width"],
        "hidden units of a head, and features of the contrastive loss",
        (*CUT_MODULES, HIDDEN),
    ),
    "remat": Key(
        "auto",
        _REMAT,
        "parts to recompute: any of `blocks,contexts,head,decoder`; `auto`: `contexts`, on a GPU none",
        (CUT, REMAT),
    ),
    "memory_budget": Key(
        placeholder(str),
        Text("a size, such as 8GiB", parse_bytes),
        "memory of one device: the fewest modules that fit replace `local.modules`",
        (CONTSUP, when("local.boundaries", "equal", "balanced")),
    ),
    "answer": Key(
        "last",
        Text("last, ensemble, or a module"),
        "deployed head: `last`, a module's name (early exit), or `ensemble`",
        SEVERAL_MODULES,
    ),
}
