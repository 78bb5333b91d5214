"""Conditions under which config keys have an effect."""

from collections.abc import Mapping
from typing import Any

from experiments.configs.combination import COMBINED, DISTILLATION, objectives_in_use, reads_logits
from experiments.configs.description import Use, Values, when
from experiments.configs.objectives import (
    DEPLOY_OTHER_BLOCKS,
    HYPER_PARAMETERS,
    OF_LOGITS,
    PAIRS,
    TEACHER,
    TEACHER_GROUP,
    TWO_VIEWS,
    WITH_HEAD,
    WITH_OTHER_TASK_TERMS,
)
from kd_local.choices.data import INCLUDED
from kd_local.choices.local import HEADS_WITH_A_WIDTH, HEADS_WITH_HIDDEN_UNITS, LOSSES_OF_LOGITS, unused_remat

METHODS: tuple[str, ...] = ("contsup", *PAIRS, "end_to_end", *DISTILLATION)

CONTSUP = when("method", "contsup")
DISTILLED = Use("a method of distillation", lambda given: given["method"] in DISTILLATION)
CUT = when("method", "contsup", *PAIRS)
DECODED = when("method", "contsup", "hpff")
MODULES = Use(
    "local.modules above 1", lambda given: given["local.modules"] > 1 or given["local.memory_budget"] is not None
)
SEVERAL_MODULES = (CONTSUP, MODULES)
CUT_MODULES = (CUT, MODULES)
LOCALLY_TAUGHT = Use(
    f"local.auxiliary={TEACHER}",
    lambda given: CONTSUP.holds(given) and MODULES.holds(given) and given["local.auxiliary"] == TEACHER,
)
TAUGHT = Use(
    f"{DISTILLED.text}, or {LOCALLY_TAUGHT.text}",
    lambda given: DISTILLED.holds(given) or LOCALLY_TAUGHT.holds(given),
)
STRONG = Use(
    f"an objective with two views: {' or '.join(TWO_VIEWS)}",
    lambda given: any(name in TWO_VIEWS for name in objectives_in_use(given)),
)
ONE_OF_LOSSES = Use(
    f"a local.auxiliary other than {TEACHER}, which has a loss of its own",
    lambda given: not LOCALLY_TAUGHT.holds(given),
)
SGD, PIECEWISE = when("optimizer.name", "sgd"), when("optimizer.schedule", "piecewise")
IMAGE_CONTEXT = Use(
    "a local.context with E", lambda given: given["method"] == "contsup" and given["local.context"].endswith("E")
)
WITH_A_HEAD = Use(
    f"{' or '.join(f'local.auxiliary={name}' for name in WITH_HEAD)}, and momentum.blocks=1",
    lambda given: (
        given["local.auxiliary"] in WITH_HEAD
        and (given["local.auxiliary"] != "momentum" or given["momentum.blocks"] == 1)
    ),
)
HIDDEN = Use(
    "a local.head of 2 or 3 linear layers, or local.loss=contrast",
    lambda given: given["local.loss"] == "contrast" or _head_in(given, HEADS_WITH_HIDDEN_UNITS),
)
WIDE = Use(
    "a local.head other than 0c1f, local.decoder, or a local.context with E",
    lambda given: _head_in(given, HEADS_WITH_A_WIDTH) or given["local.decoder"] or IMAGE_CONTEXT.holds(given),
)


def _head_in(given: Values, names: tuple[str, ...]) -> bool:
    return bool(WITH_A_HEAD.holds(given) and given["local.head"] in names)


DISTRIBUTED = Use("--distributed", lambda given: given.get("--distributed", True))
PREPARED = Use("a data set other than digits", lambda given: given["data.name"] != INCLUDED)
NO_BUDGET = Use("no local.memory_budget", lambda given: given["local.memory_budget"] is None)


_WITH_DECODER = when("local.decoder", True)
OF_PAIRS: Mapping[str, tuple[Use, ...]] = {
    **{f"hpff.{term}_{end}": (_WITH_DECODER,) for term in ("reconstruction", "head") for end in ("first", "last")},
    "hpff.patches": (
        Use(
            "local.decoder=true or hpff.faithful=false",
            lambda given: given["local.decoder"] or not given["hpff.faithful"],
        ),
    ),
}
"""Further conditions of hyper-parameters of pairs of modules."""


def above_zero(method: str, weights: tuple[str, ...]) -> Use:
    """The condition that one of the weights of a method's terms is above 0."""
    names = [f"{method}.{weight}" for weight in weights]
    return Use(f"{' or '.join(names)} above 0", lambda given: any(given[name] for name in names))


def of_objective(name: str, key: str) -> Use:
    """The condition that an objective is in use, alone or in a combination, and reads this hyper-parameter."""
    if name in DEPLOY_OTHER_BLOCKS or (key == "ce_weight" and name not in WITH_OTHER_TASK_TERMS):
        return when("method", name)
    return Use(
        f"method={name}, or combined with {name}",
        lambda given: name in objectives_in_use(given),
    )


CACHED = Use(
    f"a method of distillation that reads only logits ({', '.join(OF_LOGITS)}, or {COMBINED} of these)", reads_logits
)


def _labels(given: Values) -> bool:
    method = given["method"]
    if LOCALLY_TAUGHT.holds(given):
        return bool(given[f"{TEACHER_GROUP}.alpha"])
    if method == "contsup":
        return bool(given["local.loss"] in LOSSES_OF_LOGITS or not MODULES.holds(given))
    if method == COMBINED and given["combined.ce_weight"]:
        return True
    used = objectives_in_use(given)
    return not used or any(
        _weight_of_labels(given, name) for name in used if method != COMBINED or name in WITH_OTHER_TASK_TERMS
    )


def _weight_of_labels(given: Values, name: str) -> float:
    key = "ce_weight" if "ce_weight" in HYPER_PARAMETERS[name] else "alpha"
    return float(given.get(f"{name}.{key}", 1))


LABELS = Use("local.loss=softmax or predsim, and a weight of the cross entropy of the labels above 0", _labels)


def _named_networks(given: Values) -> bool:
    modules = given["local.modules"] if given["local.memory_budget"] is None else 2  # or more
    names = [name.strip() for name in given["local.remat"].split(",")]
    context = given["local.context"] if given["method"] == "contsup" else "R0"
    return not unused_remat(names, modules=modules, context=context, decoder=given["local.decoder"])


REMAT = Use(
    "the networks that it names: decoder with local.decoder, contexts with a local.context other than R0, head with "
    "local.modules above 1",
    _named_networks,
)


def _optimizer_has_state(given: Values) -> bool:
    plain: dict[str, Any] = {"mesh.shard": "optimizer", "optimizer.name": "sgd", "optimizer.momentum": 0}
    return given["optimizer.accumulate"] > 1 or any(given[key] != value for key, value in plain.items())


SHARD = Use(
    "an optimizer with state (optimizer.momentum above 0, or another optimizer), or mesh.shard=state",
    _optimizer_has_state,
)
