"""Conditions under which config keys have an effect."""

from experiments.configs.description import Use, when
from experiments.configs.objectives import LOCAL_DISTILLATION, OBJECTIVES

METHODS: tuple[str, ...] = ("contsup", "end_to_end", *OBJECTIVES, LOCAL_DISTILLATION)

TAUGHT = Use("a method of distillation", lambda given: given["method"] in (*OBJECTIVES, LOCAL_DISTILLATION))
CONTSUP = when("method", "contsup")
MODULES = Use(
    "local.modules above 1", lambda given: given["local.modules"] > 1 or given["local.memory_budget"] is not None
)
SEVERAL_MODULES = (CONTSUP, MODULES)
SGD, PIECEWISE = when("optimizer.name", "sgd"), when("optimizer.schedule", "piecewise")
IMAGE_CONTEXT = Use("a local.context with E", lambda given: given["local.context"].endswith("E"))
HIDDEN = Use(
    "a local.head of 2 or 3 linear layers, or local.loss=contrast",
    lambda given: given["local.loss"] == "contrast" or given["local.head"][2] != "1",
)
WIDE = Use(
    "a local.head other than 0c1f, local.decoder, or a local.context with E",
    lambda given: given["local.head"] != "0c1f" or given["local.decoder"] or IMAGE_CONTEXT.holds(given),
)
DISTRIBUTED = Use("--distributed", lambda given: given.get("--distributed", True))
NO_BUDGET = Use("no local.memory_budget", lambda given: given["local.memory_budget"] is None)
