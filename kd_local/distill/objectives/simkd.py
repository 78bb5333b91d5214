"""SimKD: the student's last features, projected to the shape of the teacher's, enter the teacher's classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import flax.linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.distill.connector import apply_connectors, init_connectors
from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, Pair, TrainingBatch
from kd_local.distill.objectives.fitnet import hint_loss
from kd_local.distill.stages import rectified
from kd_local.models.layers import ConvNorm, average_pool_to
from kd_local.networks import Collection, Variables
from kd_local.ranges import Number, Weight


class Projector(nn.Module):
    """Three convolutions: 1x1 to `features // factor` channels, 3x3, and 1x1 to `features` channels.

    Batch normalisation and ReLU follow each of them; without `relu` there is no ReLU after the last.
    """

    features: int
    factor: int = 2
    relu: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], *, train: bool) -> Float[Array, "batch h w k"]:
        middle = max(self.features // self.factor, 1)
        x = ConvNorm(middle, kernel_size=1, dtype=x.dtype, name="conv1")(x, train=train)
        x = ConvNorm(middle, kernel_size=3, dtype=x.dtype, name="conv2")(x, train=train)
        return ConvNorm(self.features, kernel_size=1, relu=self.relu, dtype=x.dtype, name="conv3")(x, train=train)


@dataclass(frozen=True)
class SimKD(Objective):
    """ce_weight * cross entropy + weight * the mean squared difference of projected and teacher features, last stage.

    The logits are those that the teacher's remaining blocks compute from the projected features. The deployed network
    consists of the student without its classifier, the projector and the teacher's remaining blocks. Features of the
    larger resolution are average-pooled to the smaller one; for the student this is done before the projection.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger; 0 in the paper.
        weight: weight of the squared difference, 0 or larger.
        factor: the teacher's channels divided by those inside the projector, 1 or more.

    Reference: Chen et al., "Knowledge distillation with the reused teacher classifier" (CVPR 2022), eq. 3. The defaults
    are the paper's.

    Raises:
        ValueError: a negative weight, or a factor below 1.
    """

    deploys_student = False

    ce_weight: Weight = 0.0
    weight: Weight = 1.0
    factor: Annotated[int, Number(1, 1024, whole=True)] = 2

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        return init_connectors(self._projector(batch), rng, {"projector": (batch.student.features[-1],)})

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        projected, batch_stats = self._project(variables, batch, train=True)
        target = average_pool_to(batch.teacher.features[-1], (projected.shape[1], projected.shape[2]))
        return with_labels(
            batch,
            hint_loss(projected, target),
            ce_weight=self.ce_weight,
            weight=self.weight,
            logits=self._classify(batch, projected),
            batch_stats=batch_stats,
        )

    def logits(self, variables: Variables, batch: EvaluationBatch) -> Float[Array, "batch _"]:
        return self._classify(batch, self._project(variables, batch, train=False)[0])

    def deployed(
        self, pair: Pair, student: Mapping[str, Any], own: Mapping[str, Any], teacher: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        first = pair.student[: pair.student.position(pair.student.stages[-1]) + 1]
        remaining = pair.teacher[pair.teacher.position(pair.teacher.stages[-1]) + 1 :]
        return {
            "student": {name: student[name] for name in first.names if name in student},
            "projector": own["projector"],
            "teacher": {name: teacher[name] for name in remaining.names if name in teacher},
        }

    def _projector(self, batch: EvaluationBatch) -> dict[str, Projector]:
        channels, relu = batch.teacher.features[-1].shape[-1], rectified(batch.pair.teacher, -1)
        # No part of the module that is being called, if any, such as `DeployedMethod`.
        return {"projector": Projector(channels, factor=self.factor, relu=relu, parent=None)}

    def _project(self, variables: Variables, batch: EvaluationBatch, *, train: bool) -> tuple[Array, Collection]:
        x, like = batch.student.features[-1], batch.teacher.features[-1].shape
        x = average_pool_to(x, (min(x.shape[1], like[1]), min(x.shape[2], like[2])))
        outputs, statistics = apply_connectors(self._projector(batch), variables, {"projector": (x,)}, train=train)
        return outputs["projector"], statistics

    def _classify(self, batch: EvaluationBatch, projected: Array) -> Array:
        return batch.remaining_blocks(len(batch.teacher.features) - 1, projected)
