"""Objectives that compare logits only, by the names that configs use, and their distances."""

from kd_local.distill.logit_objective import Distance, LogitObjective
from kd_local.distill.objectives.dist import DIST
from kd_local.distill.objectives.dkd import DKD
from kd_local.distill.objectives.gdkd import GDKD
from kd_local.distill.objectives.kd import KD
from kd_local.distill.objectives.mlkd import MLKD
from kd_local.distill.objectives.nkd import NKD
from kd_local.distill.objectives.ofa_logits import OFALogits
from kd_local.distill.objectives.rld import RLD
from kd_local.distill.objectives.ttm import TTM, WTTM
from kd_local.ranges import TEMPERATURE, Choice

LOGIT_OBJECTIVES: dict[str, type[LogitObjective]] = {
    "kd": KD,
    "dkd": DKD,
    "mlkd": MLKD,
    "dist": DIST,
    "nkd": NKD,
    "ttm": TTM,
    "wttm": WTTM,
    "rld": RLD,
    "gdkd": GDKD,
    "ofa_logits": OFALogits,
}
"""Each is an objective and a distance of Block-KD and of local distillation."""

DISTANCES: tuple[str, ...] = tuple(LOGIT_OBJECTIVES)
DISTANCE = Choice("logit distance", DISTANCES)
DEFAULT_TEMPERATURE = 4.0


def logit_distance(
    name: str, *, temperature: float | None = None, standardise: bool = False, entropy_weight: str = "none"
) -> Distance:
    """The distance with this name. All other hyper-parameters are the defaults of its objective.

    Gradients flow into both logits; apply `stop_gradient` to a fixed target.

    Args:
        name: one of `DISTANCES`.
        temperature: T of the logits of both networks, the only one of MLKD. None for the objective's default.
        standardise: True to standardise the logits of both networks first.
        entropy_weight: weights of the samples, see `kd_local.distill.sample_weights.entropy_weights`.

    Raises:
        ValueError: an unknown name, a temperature outside of `TEMPERATURE` or of a distance that has none.
    """
    DISTANCE.check("distance", name)
    kind = LOGIT_OBJECTIVES[name]
    if temperature is not None:
        TEMPERATURE.check("temperature", temperature)
        if not kind.tempered:
            raise ValueError(
                f"temperature is {temperature}, but the distance {name} compares logits at temperature 1: leave it out"
            )
    return kind.as_distance(
        temperature=temperature, standardise=standardise, entropy_weight=entropy_weight
    ).weighted_distance


def chosen_distance(name: str, *, temperature: float, standardise: bool, entropy_weight: str) -> Distance:
    """`logit_distance` with the hyper-parameters of Block-KD or of local distillation.

    Their temperature has one default for all distances, `DEFAULT_TEMPERATURE`. A distance without a temperature ignores
    this value and refuses others.

    Raises:
        ValueError: see `logit_distance`.
    """
    DISTANCE.check("distance", name)
    given = temperature if LOGIT_OBJECTIVES[name].tempered or temperature != DEFAULT_TEMPERATURE else None
    return logit_distance(name, temperature=given, standardise=standardise, entropy_weight=entropy_weight)
