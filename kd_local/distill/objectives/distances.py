"""Distances between logits, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Array, Float, Int

from kd_local.choices.distillation import DISTANCE
from kd_local.distill.objectives.dist import dist_loss
from kd_local.distill.objectives.dkd import dkd_loss
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.objectives.mlkd import mlkd_loss
from kd_local.ranges import TEMPERATURE

Distance = Callable[
    [Float[Array, "batch classes"], Float[Array, "batch classes"], Int[Array, " batch"]], Float[Array, ""]
]
"""`(student's logits, target logits, labels) -> mean over the batch`."""


def logit_distance(name: str, *, temperature: float, standardise: bool = False) -> Distance:
    """The distance with this name and temperature. All other hyper-parameters are the defaults of its objective.

    MLKD uses this one temperature. Gradients flow into both logits; apply `stop_gradient` to a fixed target.

    Raises:
        ValueError: an unknown name, or a temperature outside of `TEMPERATURE`.
    """
    TEMPERATURE.check("temperature", temperature)
    DISTANCE.check("distance", name)
    numbers: dict[str, Any] = {"temperature": temperature, "standardised": standardise}
    match name:
        case "kd":
            loss: Callable[..., Array] = partial(kd_loss, **numbers)
        case "dkd":
            return partial(dkd_loss, **numbers)
        case "mlkd":
            loss = partial(mlkd_loss, temperatures=(temperature,), standardised=standardise)
        case _:
            loss = partial(dist_loss, **numbers)
    return lambda student, target, labels: loss(student, target)
