"""Combined: a weighted sum of several objectives, with one cross entropy of the labels."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.choices.distillation import PART_WEIGHT
from kd_local.contract import Metrics
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.objectives.registry import OBJECTIVES
from kd_local.errors import check_type
from kd_local.hyperparameters import ranges_of
from kd_local.networks import Collection, Variables, by_block, of_block
from kd_local.ranges import WEIGHT, Weight

_CE_WEIGHT = "ce_weight"


@dataclass(frozen=True)
class Combined(Objective):
    """ce_weight * CE(S, y) + sum_i w_i * L_i for objectives i of one student, whose forward pass they share.

    CE(S, y) is the cross entropy of the student's logits and the labels y. L_i is the loss of objective i without that
    cross entropy. It keeps its other terms of labels: the cross entropies of Block-KD's stepping stones, weighted with
    its alpha, and that of a strong view, weighted with the objective's own `ce_weight`.

    Variables, metrics and exits have the name of their objective in front.

    >>> from kd_local.distill import OBJECTIVES
    >>> together = Combined(((OBJECTIVES["dkd"](), 1.0), (OBJECTIVES["crd"](), 0.5)))
    >>> together.names, together.reads, together.needs_indices
    (('dkd', 'crd'), 'features', True)

    Attributes:
        objectives: `(objective, w_i)`, one or more, of different types; each w_i is above 0.
        ce_weight: weight of the cross entropy of the student's logits and the labels, 0 or larger.

    Raises:
        ValueError: no objective, two of one type, or one that cannot be combined: `SimKD`, which deploys other blocks
            than the student's, and `Combined`. A weight that is not above 0, a `ce_weight` of an objective that would
            be ignored, or an objective without any term but the cross entropy of the student's logits.
    """

    objectives: tuple[tuple[Objective, float], ...]
    ce_weight: Weight = 1.0

    def __post_init__(self) -> None:
        WEIGHT.check(_CE_WEIGHT, self.ce_weight)
        way_out = "use pairs of an objective and its weight, such as ((DKD(), 1.0), (ReviewKD(), 0.5))"
        check_type("objectives", self.objectives, tuple, way_out)
        if not self.objectives:
            raise ValueError(f"objectives is (): {way_out}")
        for pair in self.objectives:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"{pair!r} in objectives: {way_out}")
            check_type("an objective", pair[0], Objective, way_out)
            PART_WEIGHT.check(f"the weight of {type(pair[0]).__name__}", pair[1])
            _check_part(pair[0])
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise ValueError(f"objectives has {min(twice)} twice: give each objective once")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the objectives: those of the registry, or of the type for an objective outside of it."""
        return tuple(name for name, _, _ in self._parts())

    @property
    def label(self) -> str:
        return f"Combined({', '.join(one.label for one, _ in self.objectives)})"

    @property
    def reads(self) -> Literal["logits", "features"]:  # type: ignore[override]
        return "logits" if all(one.reads == "logits" for one, _ in self.objectives) else "features"

    @property
    def reads_student_features(self) -> bool:  # type: ignore[override]
        return any(one.reads_student_features for one, _ in self.objectives)

    @property
    def takes_tokens(self) -> bool:  # type: ignore[override]
        of_features = (one for one, _ in self.objectives if one.reads != "logits" or one.reads_student_features)
        return all(one.takes_tokens for one in of_features)

    @property
    def needs_indices(self) -> bool:  # type: ignore[override]
        return any(one.needs_indices for one, _ in self.objectives)

    @property
    def needs_strong_view(self) -> bool:  # type: ignore[override]
        return any(one.needs_strong_view for one, _ in self.objectives)

    @property
    def needs_epoch(self) -> bool:
        return any(one.needs_epoch for one, _ in self.objectives)

    @property
    def task_weight(self) -> float:
        others = [one.task_weight for one, _ in self.objectives if one.has_other_task_terms]
        return max([self.ce_weight, *others])

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        keys = jax.random.split(rng, len(self.objectives))
        return by_block(
            {
                name: one.init(key, batch, examples=examples)
                for (name, one, _), key in zip(self._parts(), keys, strict=True)
            }
        )

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        cross_entropy = batch.task_loss(batch.student.logits, batch.labels)["loss"]
        metrics: Metrics = {"cross_entropy": cross_entropy}
        batch_stats: Collection = {}
        task = [self.ce_weight * cross_entropy]
        distillation = []
        keys = jax.random.split(batch.rng, len(self.objectives))
        for (name, one, weight), key in zip(self._parts(), keys, strict=True):
            found = one.loss(of_block(variables, name), replace(batch, rng=key))
            if one.has_other_task_terms:
                task.append(weight * (found.task - one.task_weight * cross_entropy))
            distillation.append(weight * found.distillation)
            own = (metric for metric in found.metrics if metric != "cross_entropy")
            metrics |= {f"{name}_{metric}": found.metrics[metric] for metric in own}
            batch_stats[name] = found.batch_stats
        return ObjectiveLoss(jnp.stack(task).sum(), jnp.stack(distillation).sum(), metrics, batch_stats)

    def exits(self, variables: Variables, batch: EvaluationBatch) -> dict[str, Float[Array, "batch _"]]:
        return {
            f"{name}-{stone}": logits
            for name, one, _ in self._parts()
            for stone, logits in one.exits(of_block(variables, name), batch).items()
        }

    def _parts(self) -> Iterator[tuple[str, Objective, float]]:
        """The name, the objective and its weight, in order."""
        names: dict[type, str] = {kind: name for name, kind in OBJECTIVES.items()}
        for one, weight in self.objectives:
            yield names.get(type(one), type(one).__name__.lower()), one, weight


def _check_part(one: Objective) -> None:
    """Refuses an objective that cannot be combined, or whose hyper-parameters would be ignored."""
    kind = type(one).__name__
    if isinstance(one, Combined):
        raise ValueError("Combined within Combined: give the objectives of both in one tuple")
    if not one.deploys_student:
        raise ValueError(
            f"{kind} deploys other blocks than the student's, whose logits the other objectives train: use it alone"
        )
    if one.has_other_task_terms:
        return
    defaults = {field.name: field.default for field in fields(one)}  # type: ignore[arg-type]
    if _CE_WEIGHT in defaults and getattr(one, _CE_WEIGHT) != defaults[_CE_WEIGHT]:
        raise ValueError(
            f"ce_weight of {kind} is {getattr(one, _CE_WEIGHT)}, but a combination has one cross entropy of the "
            "labels: leave it out, and set that of Combined"
        )
    weights = [name for name, values in ranges_of(type(one)).items() if values == WEIGHT and name != _CE_WEIGHT]
    if weights and not any(getattr(one, name) for name in weights):
        raise ValueError(
            f"{' and '.join(weights)} of {kind} {'are' if len(weights) > 1 else 'is'} 0, so it adds nothing to a "
            "combination: use a larger weight, or leave it out"
        )
