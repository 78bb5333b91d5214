"""FitNets: the student's features at one stage are regressed onto the teacher's, the hint."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.distill.connector import Connector, apply_connectors, init_connectors
from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import widened
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.stages import pair_stages, rectified
from kd_local.networks import Variables
from kd_local.ranges import Number, Weight, Weighted
from kd_local.shapes import check_arrays


def hint_loss(student: Float[Array, "batch h w c"], teacher: Float[Array, "batch h w c"]) -> Float[Array, ""]:
    """The mean squared difference.

    Reference: Romero et al., "FitNets: hints for thin deep nets" (ICLR 2015), eq. 3, with the mean instead of the sum.

    Raises:
        ValueError: the features differ in images or shape, or are no maps.
    """
    check_arrays(student=(student, "float batch h w c"), teacher=(teacher, "float batch h w c"))
    student, teacher = widened(student, teacher)
    return jnp.square(student - teacher).mean()


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class FitNet(Objective):
    """ce_weight * cross entropy + weight * `hint_loss` of the student's features after a regressor, a `Connector`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `hint_loss`, 0 or larger.
        stage: the student's stage, 0 for the stem; `pair_stages` gives the teacher's stage.

    Reference: Romero et al. (ICLR 2015), in one phase. The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight or stage.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 100.0
    stage: Annotated[int, Number(0, 1000, whole=True, note="0 is the stem"), _TERM] = 2

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        hint, _, regressor = self._hint(batch)
        return init_connectors({"regressor": regressor}, rng, {"regressor": (hint,)})

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        hint, target, regressor = self._hint(batch)
        outputs, batch_stats = apply_connectors({"regressor": regressor}, variables, {"regressor": (hint,)}, train=True)
        return with_labels(
            batch,
            hint_loss(outputs["regressor"], target),
            ce_weight=self.ce_weight,
            weight=self.weight,
            batch_stats=batch_stats,
        )

    def _hint(self, batch: EvaluationBatch) -> tuple[Any, Any, Connector]:
        pairs = dict(pair_stages(batch.student, batch.teacher, stem=True))
        if self.stage not in pairs:
            raise ValueError(
                f"stage is {self.stage}: use a stage of the student that is paired with a stage of the teacher: "
                f"{', '.join(map(str, pairs))}"
            )
        place = pairs[self.stage]
        target = batch.teacher.features[place]
        regressor = Connector(tuple(target.shape[1:]), relu=rectified(batch.pair.teacher, place))
        return batch.student.features[self.stage], target, regressor
