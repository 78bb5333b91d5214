"""The loss of a stepping stone's logits in local distillation."""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Array

from kd_local.choices.distillation import DISTANCE, StoneNumbers, Stones, check_stones
from kd_local.contract import Metrics
from kd_local.distill.objectives.distances import logit_distance
from kd_local.hyperparameters import check_hyperparameters
from kd_local.local.task_loss import PLAIN, TaskLoss
from kd_local.ranges import Flag, Temperature, Weight, Weighted

_TERM = Weighted(("beta",))


@dataclass(frozen=True)
class StoneLoss:
    """alpha * CE(N_i, y) + beta * d(N_i, T); the last module adds alpha * CE(S, y) + beta * d(S, T).

    N_i, S and T are the logits of the stepping stone, the student and the teacher; y are the labels.

    Attributes:
        alpha: weight of the cross entropy of the labels, 0 or larger; KD's value in the mdistiller protocol.
        beta: weight of the distance d, 0 or larger; KD's value in the mdistiller protocol.
        distance: d, one of kd, dkd, mlkd and dist.
        temperature: T of the distance, above 0.
        standardise: True to standardise the logits in d (Sun et al., CVPR 2024).
        stones: `all`, or numbers of stones, counted from 1: `(2, 3)` in Python, `2,3` in a config. The student is cut
            after each of these stages.

    Raises:
        ValueError: a negative weight, a temperature that is not above 0, or an unknown distance.
    """

    alpha: Weight = 0.1
    beta: Weight = 0.9
    distance: Annotated[str, DISTANCE, _TERM] = "kd"
    temperature: Annotated[Temperature, _TERM] = 4.0
    standardise: Annotated[Flag, _TERM] = False
    stones: Annotated[Stones, StoneNumbers()] = "all"

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        check_stones(self.stones)

    def __call__(
        self, logits: Array, target: Array, labels: Array, task_loss: TaskLoss = PLAIN
    ) -> tuple[Array, Metrics]:
        """`(loss, metrics)` of the logits of a stone or of the student: the loss, its terms and the accuracy."""
        of_labels = task_loss(logits, labels)
        distance = logit_distance(self.distance, temperature=self.temperature, standardise=self.standardise)
        distillation = distance(logits, target, labels)
        total = self.alpha * of_labels["loss"] + self.beta * distillation
        return total, {
            "cross_entropy": of_labels["loss"],
            "distillation": distillation,
            "accuracy": of_labels["accuracy"],
        }
