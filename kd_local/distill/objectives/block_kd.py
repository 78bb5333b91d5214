"""Block-KD: losses on the logits of stepping stones, hybrids of student and teacher, align the student's features.

The student's features after stage i go through a connector C_i and the frozen teacher's remaining blocks:

    N_i = T_head . T_n . ... . T_{i+1} . C_i . S_i . ... . S_1          1 <= i <= n

Reference: Yu et al., "Decoupling dark knowledge via block-wise logit distillation for feature-level alignment" (arXiv
2411.01547). The paper does not give some values. By default alpha, beta and T are those of KD in the mdistiller
protocol, gamma equals beta, no gradient flows into the ensemble as a target, and there is no warm-up.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.choices.distillation import StoneNumbers, Stones, check_stones
from kd_local.contract import Metrics
from kd_local.distill.connector import Connector, apply_connectors, init_connectors
from kd_local.distill.logit_objective import Distance, check_distance
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.objectives.distances import DEFAULT_TEMPERATURE, DISTANCE, chosen_distance
from kd_local.distill.reverse_stones import (
    reverse_connectors,
    reverse_statistics,
    reverse_stones,
    through_student,
)
from kd_local.distill.sample_weights import EntropyWeight
from kd_local.distill.stepping_stones import (
    Stone,
    connector_to,
    stepping_stones,
    through_teacher,
)
from kd_local.distill.warmup import warmup
from kd_local.networks import Collection, Variables
from kd_local.ranges import Choice, Flag, Temperature, WarmupEpochs, Weight, Weighted

_TERM = Weighted(("beta", "gamma"))


@dataclass(frozen=True)
class BlockKD(Objective):
    """alpha * L_task + beta * L_distill + gamma * L_cross, with a distance d of logits and w_i = 1 / 2^(n - i):

        L_task    = CE(S, y)      + sum_i w_i * CE(N_i, y)
        L_distill = d(S, T)       + sum_i w_i * d(N_i, T)
        L_cross   = d(S, Y_ens)   + sum_i w_i * d(N_i, Y_ens)      Y_ens = mean_i Y^{N_i}

    Attributes:
        alpha: weight of L_task, 0 or larger; KD's value in the mdistiller protocol.
        beta: weight of L_distill, 0 or larger; KD's value in the mdistiller protocol.
        gamma: weight of L_cross, 0 or larger; equal to beta.
        distance: d, the distance of an objective that compares logits, with the objective's defaults for all
            hyper-parameters but the three below.
        temperature: T of the distance, above 0; nkd, ofa_logits, ttm and wttm take none.
        standardise: True to standardise the logits in d (Sun et al., CVPR 2024).
        entropy_weight: weights of the samples in d: none, or H_ub of `entropy_weights`, log_classes or 100.
        stones: `all`, or numbers of stones, counted from 1: `(2, 3)` in Python, `2,3` in a config. Fewer than all are
            the paper's lightweight variant.
        ensemble_gradient: True to let gradients flow into the ensemble as a target.
        warmup_epochs: epochs over which the weight of the distances grows linearly, 0 or more; 0 for no warm-up.
        batched: True to apply the teacher's blocks to all stones at once, as one larger batch, with the same results.
        directions: `student_to_teacher`, the paper's stones, or `both`: with reverse stones too, an option of this
            project in which the teacher's features pass the student's remaining blocks.

    Reverse stones M_i (`kd_local.distill.reverse_stones`) add their terms to each sum, with the weights
    w'_i = 1 / 2^(i - 1). Y_ens is then the mean over the stones of both directions. `stones` chooses both.

    Student and teacher may be of any families. `Connector` says how maps enter a transformer with a class token, and
    its tokens a network of maps.

    Reference: Yu et al. (arXiv 2411.01547).

    Raises:
        ValueError: a negative weight, a temperature out of range or of a distance that takes none, or an unknown
            distance.
    """

    has_other_task_terms: ClassVar[bool] = True
    takes_tokens: ClassVar[bool] = True
    alpha: Weight = 0.1
    beta: Weight = 0.9
    gamma: Weight = 0.9
    distance: Annotated[str, DISTANCE, _TERM] = "kd"
    temperature: Annotated[Temperature, _TERM] = DEFAULT_TEMPERATURE
    standardise: Annotated[Flag, _TERM] = False
    entropy_weight: Annotated[EntropyWeight, _TERM] = "none"
    stones: Annotated[Stones, StoneNumbers()] = "all"
    ensemble_gradient: Annotated[Flag, Weighted(("gamma",))] = False
    warmup_epochs: Annotated[WarmupEpochs, _TERM] = 0
    batched: Flag = True
    directions: Annotated[str, Choice("directions", ("student_to_teacher", "both"))] = "student_to_teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stones(self.stones)
        self._distance()

    @property
    def task_weight(self) -> float:
        return self.alpha

    @property
    def needs_epoch(self) -> bool:
        return self.warmup_epochs > 0

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        check_distance(self._distance(), batch.student.logits, batch.teacher.logits)
        stones, connectors, inputs = self._connectors(batch)
        if self.directions != "both":
            return init_connectors(connectors, rng, inputs)
        reverse = reverse_stones(stones)
        more_connectors, more_inputs = reverse_connectors(batch, reverse)
        variables = init_connectors({**connectors, **more_connectors}, rng, {**inputs, **more_inputs})
        statistics = {**variables["batch_stats"], **reverse_statistics(batch, reverse)}
        return {**variables, "batch_stats": statistics}

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        stones, logits, statistics = self._stone_logits(variables, batch, train=True)
        if self.directions == "both":
            reverse = reverse_stones(stones)
            reverse_logits, more = through_student(variables, batch, reverse)
            stones, logits, statistics = stones + reverse, logits + reverse_logits, {**statistics, **more}
        student, labels = batch.student.logits, batch.labels
        distance = self._distance()
        ensemble = jnp.stack(logits).mean(axis=0)
        if not self.ensemble_gradient:
            ensemble = jax.lax.stop_gradient(ensemble)
        task = batch.task_loss(student, labels)["loss"]
        distill = distance(student, batch.teacher.logits, labels)
        cross = distance(student, ensemble, labels)
        accuracies: Metrics = {}
        for stone, stone_logits in zip(stones, logits, strict=True):
            of_labels = batch.task_loss(stone_logits, labels)
            task += stone.weight * of_labels["loss"]
            distill += stone.weight * distance(stone_logits, batch.teacher.logits, labels)
            cross += stone.weight * distance(stone_logits, ensemble, labels)
            accuracies[f"{stone.name}_accuracy"] = of_labels["accuracy"]
        warm = warmup(batch.epoch, self.warmup_epochs)
        return ObjectiveLoss(
            task=self.alpha * task,
            distillation=warm * (self.beta * distill + self.gamma * cross),
            metrics={"task": task, "distillation": distill, "cross": cross, **accuracies},
            batch_stats=statistics,
        )

    def exits(self, variables: Variables, batch: EvaluationBatch) -> dict[str, Float[Array, "batch classes"]]:
        """The logits of the stones that end in the teacher, by name."""
        stones, logits, _ = self._stone_logits(variables, batch, train=False)
        return {stone.name: stone_logits for stone, stone_logits in zip(stones, logits, strict=True)}

    def _distance(self) -> Distance:
        return chosen_distance(
            self.distance,
            temperature=self.temperature,
            standardise=self.standardise,
            entropy_weight=self.entropy_weight,
        )

    def _stone_logits(
        self, variables: Variables, batch: EvaluationBatch, *, train: bool
    ) -> tuple[tuple[Stone, ...], list[Array], Collection]:
        stones, connectors, inputs = self._connectors(batch)
        features, statistics = apply_connectors(connectors, variables, inputs, train=train)
        entering = [(stone.teacher, features[stone.name]) for stone in stones]
        return stones, through_teacher(batch.remaining_blocks, entering, batched=self.batched), statistics

    def _connectors(
        self, batch: EvaluationBatch
    ) -> tuple[tuple[Stone, ...], dict[str, Connector], dict[str, list[Any]]]:
        stones = stepping_stones(batch.student, batch.teacher, self.stones)
        connectors = {stone.name: connector_to(batch.pair, batch.teacher, stone.teacher) for stone in stones}
        return stones, connectors, {stone.name: [batch.student.features[stone.student]] for stone in stones}
