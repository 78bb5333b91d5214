"""Weights of the samples of a batch in a loss of logits."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kd_local.distill.standardisation import logits_to_compare
from kd_local.ranges import Choice

ENTROPY_WEIGHT = Choice("entropy weight", ("none", "log_classes", "100"))
EntropyWeight = Annotated[str, ENTROPY_WEIGHT]
"""No weights, or the H_ub of `entropy_weights`."""
_TEMPERATURE = 3.0


def entropy_weights(
    student: Float[Array, "batch classes"], target: Float[Array, "batch classes"], bound: str = "log_classes"
) -> Float[Array, " batch"] | None:
    """H_t (1 + H_s / H_ub) / 2 for each sample, where H is the entropy of softmax(logits / 3), in nats.

    A sample counts more if the target is unsure, and most if the student is unsure too. No gradient flows into the
    weights. Their mean is not 1.

    Args:
        student: logits.
        target: logits.
        bound: H_ub: `log_classes`, the largest entropy, as in the paper, or `100`, as in the authors' code for
            CIFAR-100. With `none` there are no weights, and the result is None.

    Reference: Su et al., "EA-KD: entropy-based adaptive knowledge distillation" (ICCV 2025, arXiv
    2311.13621), and its code.

    Raises:
        ValueError: another bound, one class, or the logits differ in shape or are none.
    """
    ENTROPY_WEIGHT.check("bound", bound)
    if bound == "none":
        return None
    student, target = logits_to_compare(student, target, temperature=_TEMPERATURE, standardised=False)
    classes = student.shape[-1]
    if classes < 2:
        raise ValueError("1 class: every entropy is 0, so use 2 classes or more, or entropy_weight=none")
    of_student, of_target = (_entropy(logits / _TEMPERATURE) for logits in (student, target))
    largest = jnp.log(jnp.asarray(classes, student.dtype)) if bound == "log_classes" else float(bound)
    return jax.lax.stop_gradient(of_target * (1 + of_student / largest) / 2)


def _entropy(logits: Float[Array, "batch classes"]) -> Float[Array, " batch"]:
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -(jnp.exp(log_p) * log_p).sum(axis=-1)


def batch_mean(losses: Float[Array, " batch"], weights: Float[Array, " batch"] | None) -> Float[Array, ""]:
    """The mean over the batch of the losses, each times the weight of its sample if there are weights."""
    return losses.mean() if weights is None else (weights.astype(losses.dtype) * losses).mean()


def of_whole_batch(loss: Float[Array, ""], weights: Float[Array, " batch"] | None) -> Float[Array, ""]:
    """A loss that compares samples with each other, times the mean weight of the samples if there are weights.

    Such a loss is no sum over samples. The mean is the effect of weights that multiply a scalar before the mean over
    the batch.
    """
    return loss if weights is None else weights.mean().astype(loss.dtype) * loss
