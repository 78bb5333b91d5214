"""The keys of a combination of objectives: their names, each with a weight."""

from collections.abc import Mapping
from typing import Any

from experiments.configs.description import Group, Key, when
from experiments.configs.objectives import DEPLOY_OTHER_BLOCKS, HYPER_PARAMETERS, OBJECTIVES, OF_LOGITS
from kd_local.choices.distillation import PART_WEIGHT
from kd_local.errors import unknown
from kd_local.ranges import WEIGHT, Text

COMBINED = "combined"
"""The method that combines objectives, and its group of keys."""
DISTILLATION: tuple[str, ...] = (*OBJECTIVES, COMBINED)
"""The methods of distillation."""
EXAMPLE = "dkd:1,reviewkd:1"
_COMBINABLE = tuple(name for name in OBJECTIVES if name not in DEPLOY_OTHER_BLOCKS)


def combination(text: str) -> dict[str, float]:
    """The weight of each objective in a text such as `dkd:1,reviewkd:0.5`; 1 where it has none.

    >>> combination("dkd, reviewkd:0.5")
    {'dkd': 1.0, 'reviewkd': 0.5}

    Raises:
        ValueError: a name is unknown, given twice, or that of an objective that cannot be combined; or a weight is not
            above 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, colon, weight = (word.strip() for word in part.partition(":"))
        if name in DEPLOY_OTHER_BLOCKS:
            raise ValueError(
                f"{name} deploys other blocks than the student's, whose logits the other objectives train: use it "
                f"alone, --config.method={name}"
            )
        if name not in _COMBINABLE:
            raise unknown("objective", name, _COMBINABLE)
        if name in found:
            raise ValueError(f"{name} twice: give each objective once, such as {EXAMPLE}")
        found[name] = float(PART_WEIGHT.read(f"the weight of {name}", weight)) if colon else 1.0
    return found


def objectives_in_use(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The objectives of a config, whose keys have their names: that of the method, or those of a combination.

    Args:
        values: the values of the keys `method` and `combined.objectives`.
    """
    if values["method"] == COMBINED:
        return tuple(combination(values["combined.objectives"]))
    return (values["method"],) if values["method"] in HYPER_PARAMETERS else ()


def reads_logits(values: Mapping[str, Any]) -> bool:
    """True if the objectives in use read only the logits of a teacher."""
    used = objectives_in_use(values)
    return bool(used) and all(name in OF_LOGITS for name in used)


COMBINATION: Group = {
    "objectives": Key(
        EXAMPLE,
        Text("names of objectives, each with a weight above 0: dkd:1,reviewkd:0.5", combination),
        "the objectives that are added, with their weights; their keys are those of the objectives",
        (when("method", COMBINED),),
    ),
    "ce_weight": Key(
        1.0, WEIGHT, "weight of the cross entropy of the labels, which counts once", (when("method", COMBINED),)
    ),
}
