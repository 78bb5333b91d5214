"""The loss of a stepping stone's logits in local distillation."""

from dataclasses import dataclass
from typing import Annotated, Any

from jaxtyping import Array

from kd_local.contract import Metrics
from kd_local.distill.logit_objective import Distance, check_distance
from kd_local.distill.objectives.distances import DEFAULT_TEMPERATURE, DISTANCE, chosen_distance
from kd_local.distill.sample_weights import EntropyWeight
from kd_local.errors import check_type
from kd_local.hyperparameters import check_hyperparameters
from kd_local.local.task_loss import PLAIN, TaskLoss
from kd_local.ranges import Flag, Temperature, Weight, Weighted

_TERM = Weighted(("beta",))


@dataclass(frozen=True)
class StoneLoss:
    """alpha * CE(N_i, y) + beta * d(N_i, T); the last module has alpha * CE(S, y) + beta * d(S, T), alone or added.

    N_i, S and T are the logits of the stepping stone, the student and the teacher; y are the labels.

    Attributes:
        alpha: weight of the cross entropy of the labels, 0 or larger; KD's value in the mdistiller protocol.
        beta: weight of the distance d, 0 or larger; KD's value in the mdistiller protocol.
        distance: d, the distance of an objective that compares logits, with the objective's defaults for all
            hyper-parameters but the three below.
        temperature: T of the distance, above 0; nkd, ofa_logits, ttm and wttm take none.
        standardise: True to standardise the logits in d (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples in d: none, or H_ub of `entropy_weights`, log_classes or 100.
        last: True to give the last module a stepping stone too, after the student's last stage.
        task_loss: CE, the cross entropy of the labels.

    Raises:
        ValueError: a negative weight, a temperature out of range or of a distance that takes none, or an unknown
            distance.
    """

    alpha: Weight = 0.1
    beta: Weight = 0.9
    distance: Annotated[str, DISTANCE, _TERM] = "kd"
    temperature: Annotated[Temperature, _TERM] = DEFAULT_TEMPERATURE
    standardise: Annotated[Flag, _TERM] = False
    entropy_weight: Annotated[EntropyWeight, _TERM] = "none"
    last: Flag = True
    task_loss: TaskLoss = PLAIN

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        self._distance()
        check_type("task_loss", self.task_loss, TaskLoss, "use TaskLoss(label_smoothing=0.1), or leave it out")

    def __call__(self, logits: Array, labels: Array, target: Array) -> Metrics:
        """The loss of the logits of a stone or of the student, its two terms without weights, and the accuracy.

        Args:
            logits: of the stone or the student.
            labels: in [0, classes).
            target: the teacher's logits.
        """
        of_labels = self.task_loss(logits, labels)
        distillation = self._distance()(logits, target, labels)
        return {
            "loss": self.alpha * of_labels["loss"] + self.beta * distillation,
            "cross_entropy": of_labels["loss"],
            "distillation": distillation,
            "accuracy": of_labels["accuracy"],
        }

    def check(self, logits: Any) -> None:
        """Checks that the distance can compare logits of this shape.

        Raises:
            ValueError: see `check_distance`.
        """
        check_distance(self._distance(), logits, logits)

    def _distance(self) -> Distance:
        return chosen_distance(
            self.distance,
            temperature=self.temperature,
            standardise=self.standardise,
            entropy_weight=self.entropy_weight,
        )
