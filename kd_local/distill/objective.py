"""Objectives of distillation: losses that compare the outputs of a student and of its teacher for the same batch.

The method `Distillation` runs both networks and computes the gradient. A new objective is a file in `objectives/` and a
line in its `registry.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.contract import Metrics
from kd_local.hyperparameters import check_hyperparameters
from kd_local.local.task_loss import PLAIN, TaskLoss
from kd_local.networks import Collection, Network, Variables


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
    """The outputs of a network for a batch: arrays, or in `Objective.init` their `jax.ShapeDtypeStruct`s.

    Attributes:
        features: (batch, h, w, c), or (batch, 1, class tokens + patches, c), the output of each stage, the stem first.
        preactivations: the features before the last ReLU of each stage; equal to the features if there is none.
        pooled: (batch, c), the input of the last linear layer.
        logits: (batch, classes).
        before_pooling: (batch, h, w, c), the map whose mean over height and width is `pooled`; None if the network has
            none.
    """

    features: tuple[Any, ...]
    preactivations: tuple[Any, ...]
    pooled: Any
    logits: Any
    before_pooling: Any = None

    @classmethod
    def of_logits(cls, logits: Any) -> "Outputs":
        """Outputs of which only the logits are known, such as cached ones. `pooled` is None."""
        return cls((), (), None, logits)


@dataclass(frozen=True)
class Pair:
    """A student and one of its teachers."""

    student: Network
    teacher: Network


@dataclass(frozen=True)
class StrongView:
    """The outputs of student and teacher for the strongly augmented images of a batch; see `TrainingBatch`."""

    student: Outputs
    teacher: Outputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ObjectiveLoss:
    """The loss of an objective, as two terms that include their weights.

    Attributes:
        task: the terms of the labels, such as the cross entropy of the student's logits.
        distillation: all other terms.
        metrics: terms without their weights, by name.
        batch_stats: the objective's batch statistics after the step.
    """

    task: Float[Array, ""]
    distillation: Float[Array, ""]
    metrics: Metrics
    batch_stats: Collection

    @property
    def total(self) -> Float[Array, ""]:
        """The sum of the two terms."""
        return self.task + self.distillation


@runtime_checkable
class RemainingBlocks(Protocol):
    """The frozen teacher's blocks after a stage."""

    def __call__(self, stage: int, x: Float[Array, "n _ _ _"], until: int | None = None) -> Array:
        """Applies the teacher's blocks after the stage with index `stage`, in evaluation mode.

        Returns the logits, or the features at the end of the stage `until`. Gradients flow to `x`.
        """
        ...


@runtime_checkable
class TrainedBlocks(Protocol):
    """The student's blocks after a stage, in training mode."""

    def __call__(
        self, stage: int, x: Float[Array, "n _ _ _"], statistics: Collection, until: int | None = None
    ) -> tuple[Array, Collection]:
        """Applies the student's blocks after the stage with index `stage`.

        The blocks have the student's parameters, normalise with the statistics of the batch `x`, and update the running
        `statistics`, given by block. Gradients flow to `x` and to the student.

        Returns:
            `(output, statistics after the step)`: the logits, or the features at the end of the stage `until`.
        """
        ...


@dataclass(frozen=True)
class EvaluationBatch:
    """The inputs of an objective in evaluation.

    Attributes:
        pair: student and teacher.
        student: the student's outputs, in evaluation mode; in `Objective.init` their shapes.
        teacher: the shapes of the teacher's outputs.
        remaining_blocks: applies the teacher's blocks after a stage.
        teacher_variables: the teacher's parameters and statistics; no gradient flows into them.
    """

    pair: Pair
    student: Outputs
    teacher: Outputs
    remaining_blocks: RemainingBlocks
    teacher_variables: Variables = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class TrainingBatch(EvaluationBatch):
    """The inputs of an objective in training.

    Attributes:
        student: the student's outputs, in training mode.
        teacher: the teacher's outputs, in evaluation mode; no gradient flows into them.
        labels: in [0, classes).
        indices: the images' positions in the training set, from 0; zeros unless `needs_indices`.
        epoch: the current epoch, counted from 1.
        rng: a key for random choices in this step.
        task_loss: the cross entropy of the labels.
        strong: the outputs for the strong view; None unless `needs_strong_view`.
        student_remaining_blocks: applies the student's blocks after a stage, in training mode.
        student_params: the student's parameters.
        teacher_images: the images with the teacher's normalisation.
    """

    labels: Int[Array, " batch"]
    indices: Int[Array, " batch"]
    epoch: Float[Array, ""]
    rng: PRNGKeyArray
    task_loss: TaskLoss = PLAIN
    strong: StrongView | None = None
    student_remaining_blocks: TrainedBlocks | None = None
    student_params: Collection = field(default_factory=dict)
    teacher_images: Any = None


class Objective:
    """A loss for distillation: a frozen dataclass of hyper-parameters, whose defaults are the published values.

    Subclasses override `loss`, and `init` if they have their own variables.

    Attributes:
        reads: `logits` if the objective uses only the teacher's logits, which may then come from a cache.
        reads_student_features: True if an objective on the teacher's logits reads more than logits of the student.
        takes_tokens: True if the features that are read may be sequences with class tokens, not only maps.
        needs_indices: True if the objective reads `TrainingBatch.indices`.
        needs_strong_view: True if the objective reads `TrainingBatch.strong`. The step then reads the tensor
            `images_strong`, other augmentations of the same images, and runs both networks on it too.
        deploys_student: True if the student alone is deployed; False if the subclass overrides `logits` and `deployed`.
        has_other_task_terms: True if the loss has terms of the labels besides the cross entropy of the student's
            logits; `task_weight` is then the weight of that cross entropy.
    """

    reads: ClassVar[Literal["logits", "features"]] = "features"
    reads_student_features: ClassVar[bool] = False
    takes_tokens: ClassVar[bool] = False
    needs_indices: ClassVar[bool] = False
    needs_strong_view: ClassVar[bool] = False
    deploys_student: ClassVar[bool] = True
    has_other_task_terms: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Checks the hyper-parameters.

        Raises:
            ValueError: see `kd_local.hyperparameters.check_hyperparameters`.
        """
        check_hyperparameters(self)

    @property
    def label(self) -> str:
        """The name of the objective in messages."""
        return type(self).__name__

    @property
    def task_weight(self) -> float:
        """The weight of `TrainingBatch.task_loss` in the loss."""
        return getattr(self, "ce_weight", 1.0)

    @property
    def needs_epoch(self) -> bool:
        """True if the objective reads `TrainingBatch.epoch`."""
        return False

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        """New variables of the objective: `params` (connectors) and `batch_stats` (what it keeps from step to step).

        Args:
            rng: a key.
            batch: shapes in place of outputs.
            examples: the number of training images.

        Raises:
            ValueError: the two networks do not fit each other, or `examples` is needed and missing.
        """
        return {"params": {}, "batch_stats": {}}

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        """The loss of a batch, including the cross entropy of the labels."""
        raise NotImplementedError

    def logits(self, variables: Variables, batch: EvaluationBatch) -> Float[Array, "batch _"]:
        """The logits of the deployed network: the student's, unless a subclass overrides this."""
        return batch.student.logits

    def deployed(
        self, pair: Pair, student: Mapping[str, Any], own: Mapping[str, Any], teacher: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The parameters that `logits` uses. Called only if `deploys_student` is False.

        Args:
            pair: student and teacher.
            student: the parameters of the student's blocks.
            own: the parameters of the objective.
            teacher: the parameters of the teacher's blocks.
        """
        raise NotImplementedError

    def exits(self, variables: Variables, batch: EvaluationBatch) -> dict[str, Float[Array, "batch _"]]:
        """The logits of the stepping stones, by name."""
        return {}
