"""OFA-KD: cross entropy whose target gives the label more weight the surer the teacher is, also at trained exits."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kd_local.choices.distillation import StoneNumbers, Stones
from kd_local.distill.class_groups import not_the_label
from kd_local.distill.connector import apply_connectors, init_connectors
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.ofa_exits import exit_after
from kd_local.distill.sample_weights import batch_mean
from kd_local.distill.standardisation import logits_to_compare
from kd_local.local.losses import softmax
from kd_local.networks import Collection, Variables
from kd_local.ranges import Number, Numbers, Temperature, Weight, Weighted
from kd_local.shapes import check_arrays, check_labels

EPS = Number(0, 100, open_low=True, example=1.5)


def ofa_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    labels: Int[Array, " batch"] | Float[Array, "batch classes"],
    *,
    eps: float = 1.0,
    standardised: bool = False,
    sample_weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """-sum over classes of ((p + y)^eps - y) log q, the mean over the batch, in nats.

    p and q are the probabilities of the target and of the student, at temperature 1; y is 1 for the label, 0 otherwise.

    Args:
        student: logits.
        target: logits.
        labels: in [0, classes), or the probabilities of the classes, of which the largest gives the label.
        eps: above 0; 1 is the cross entropy with p.
        standardised: True to standardise both logits first.
        sample_weights: multiply the losses of the samples before the mean.

    Reference: Hao et al., "One-for-all: bridge the gap between heterogeneous architectures in knowledge distillation"
    (NeurIPS 2023), eq. 6.

    Raises:
        ValueError: the arrays do not fit each other, a label is not below the number of classes, or an argument is out
            of range.
    """
    student, target = logits_to_compare(student, target, temperature=1.0, standardised=standardised)
    EPS.check("eps", eps)
    if getattr(labels, "ndim", 1) == 2:
        check_arrays(student=(student, "float batch classes"), labels=(labels, "float batch classes"))
        labels = labels.argmax(axis=-1)
    check_arrays(student=(student, "float batch classes"), labels=(labels, "int batch"))
    check_labels(labels, student.shape[-1])
    others = not_the_label(labels, student.shape[-1])
    log_p = jax.nn.log_softmax(target, axis=-1)
    # (1 + p)^eps - 1 of the label and p^eps of the others, without a power of 0.
    weights = jnp.where(others, jnp.exp(eps * log_p), jnp.expm1(eps * jnp.log1p(jnp.exp(log_p))))
    return batch_mean(-(weights * jax.nn.log_softmax(student, axis=-1)).sum(axis=-1), sample_weights)


_EXITS = Weighted(("exits_weight",))
_ALL = Weighted(("logits_weight", "exits_weight"))


@dataclass(frozen=True)
class OFA(Objective):
    """ce_weight * cross entropy + logits_weight * l(student) + exits_weight * the sum of l over the student's exits.

    l is `ofa_loss` of logits and the teacher's logits. An exit is a trained network behind a stage of the student, see
    `kd_local.distill.ofa_exits`; it is dropped after training. Only the teacher's logits are used. Student and teacher
    may be of any two families.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        logits_weight: weight of `ofa_loss` of the student's logits, 0 or larger.
        exits_weight: weight of the sum of `ofa_loss` over the exits, 0 or larger; without it there are no exits.
        stages: `all`, or numbers of the student's stages with an exit, from 1: `(2, 4)` in Python, `2,4` in a config.
        eps: the exponent of each stage's exit, in the order of `stages`, then that of the student's logits; or one
            number for all of them. Above 0; published: 1, and 1.5 for ResNet-18 from DeiT-T.
        temperature: divides the logits of student, exits and teacher, above 0.

    Reference: Hao et al. (NeurIPS 2023), eq. 6 and 7. The defaults are those of its code, for students of four stages:
    an exit has 4 - i blocks behind stage i there, and n - i in a student of n stages here. Its issues report that the
    results cannot be reproduced; the authors advise exits_weight=0.1 in that case.

    Raises:
        ValueError: a negative weight, or a number or list that is out of range.
    """

    reads: ClassVar[Literal["logits", "features"]] = "logits"
    reads_student_features: ClassVar[bool] = True
    takes_tokens: ClassVar[bool] = True

    ce_weight: Weight = 1.0
    logits_weight: Weight = 1.0
    exits_weight: Weight = 1.0
    stages: Annotated[Stones, StoneNumbers(), _EXITS] = "all"
    eps: Annotated[tuple[float, ...], Numbers(EPS, least=1, example=(1, 1, 1.5)), _ALL] = (1.0,)
    temperature: Annotated[Temperature, _ALL] = 1.0

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        width = batch.student.pooled.shape[-1]
        if not batch.pair.student.is_transformer:
            width = max(width, batch.teacher.pooled.shape[-1])
        exits, inputs = self._exits(batch, width)
        self._eps(len(exits))
        return init_connectors(exits, rng, inputs) if exits else {"params": {}, "batch_stats": {}}

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        logits, statistics = self._logits(variables, batch, train=True)
        *eps_of_exits, eps_of_logits = self._eps(len(logits))

        def loss(logits: Array, eps: float) -> Array:
            target = batch.teacher.logits / self.temperature
            return ofa_loss(logits / self.temperature, target, batch.labels, eps=eps)

        of_labels = batch.task_loss(batch.student.logits, batch.labels)["loss"]
        of_logits = loss(batch.student.logits, eps_of_logits)
        of_exits = sum(map(loss, logits.values(), eps_of_exits), jnp.zeros_like(of_logits))
        accuracies = {f"{name}_accuracy": softmax(each, batch.labels)["accuracy"] for name, each in logits.items()}
        return ObjectiveLoss(
            task=self.ce_weight * of_labels,
            distillation=self.logits_weight * of_logits + self.exits_weight * of_exits,
            metrics={"cross_entropy": of_labels, "logits": of_logits, "exits": of_exits, **accuracies},
            batch_stats=statistics,
        )

    def exits(self, variables: Variables, batch: EvaluationBatch) -> dict[str, Float[Array, "batch classes"]]:
        return self._logits(variables, batch, train=False)[0]

    def _logits(
        self, variables: Variables, batch: EvaluationBatch, *, train: bool
    ) -> tuple[dict[str, Array], Collection]:
        """The logits of the exits by name, such as `exit1`, and their batch statistics."""
        if not variables.get("params"):
            return {}, {}
        # The teacher's width is unknown here if its logits come from a cache.
        width = next(iter(variables["params"].values()))["linear"]["kernel"].shape[0]
        exits, inputs = self._exits(batch, width)
        return apply_connectors(exits, variables, inputs, train=train)

    def _exits(self, batch: EvaluationBatch, width: int) -> tuple[dict[str, nn.Module], dict[str, tuple[Any]]]:
        """The exits by name, and their inputs."""
        last, classes = len(batch.student.features) - 1, batch.student.logits.shape[-1]
        stages = tuple(range(1, last + 1)) if isinstance(self.stages, str) else self.stages
        if missing := [stage for stage in stages if stage not in range(1, last + 1)]:
            raise ValueError(f"stages has {missing[0]}: use all, or numbers from 1 to {last}, the student's stages")
        exits: dict[str, nn.Module] = {}
        inputs: dict[str, tuple[Any]] = {}
        for stage in stages if self.exits_weight else ():
            x, name = batch.student.features[stage], f"exit{stage}"
            exits[name] = exit_after(batch.pair.student, x.shape, behind=last - stage, width=width, classes=classes)
            inputs[name] = (x,)
        return exits, inputs

    def _eps(self, exits: int) -> tuple[float, ...]:
        """The exponent of each exit, then that of the student's logits.

        Raises:
            ValueError: there are more or fewer.
        """
        eps = self.eps * (exits + 1) if len(self.eps) == 1 else self.eps
        if len(eps) != exits + 1:
            raise ValueError(
                f"eps has {len(self.eps)} numbers for {exits} exits and the student's logits: use 1 or {exits + 1}"
            )
        return eps
