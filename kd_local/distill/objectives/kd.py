"""Knowledge distillation: the divergence of the student's softened probabilities from the teacher's."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.contract import Metrics
from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.hyperparameters import check_positive, check_weights
from kd_local.distill.objective import Objective, TrainingBatch
from kd_local.distill.standardisation import logits_to_compare
from kd_local.networks import Collection, Variables


def kd_loss(
    student: Float[Array, "batch classes"],
    target: Float[Array, "batch classes"],
    *,
    temperature: float = 4.0,
    standardised: bool = False,
) -> Float[Array, ""]:
    """T^2 KL(softmax(target / T) || softmax(student / T)) of logits, the mean over the batch, in nats.

    Reference: Hinton et al., "Distilling the knowledge in a neural network" (arXiv 1503.02531), section 2.
    """
    student, target = logits_to_compare(student, target, standardised=standardised)
    log_p, log_q = (jax.nn.log_softmax(logits / temperature, axis=-1) for logits in (target, student))
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean()


@dataclass(frozen=True)
class KD(Objective):
    """ce_weight * cross entropy + weight * `kd_loss`.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of `kd_loss`, 0 or larger.
        temperature: T, above 0; divides the logits of both networks.
        standardise: True to standardise the logits of both networks first (Sun et al., CVPR 2024).

    Reference: Hinton et al. (arXiv 1503.02531). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight, or a temperature that is not above 0.
    """

    reads: ClassVar[Literal["logits", "features"]] = "logits"
    ce_weight: float = 0.1
    weight: float = 0.9
    temperature: float = 4.0
    standardise: bool = False

    def __post_init__(self) -> None:
        check_weights(ce_weight=self.ce_weight, weight=self.weight)
        check_positive(temperature=self.temperature)

    def loss(self, variables: Variables, batch: TrainingBatch) -> tuple[Float[Array, ""], Metrics, Collection]:
        distillation = kd_loss(
            batch.student.logits,
            batch.teacher.logits,
            temperature=self.temperature,
            standardised=self.standardise,
        )
        return with_labels(batch, distillation, ce_weight=self.ce_weight, weight=self.weight)
