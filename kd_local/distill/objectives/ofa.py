"""OFA-KD's loss on logits: cross entropy whose target gives the label more weight the surer the teacher is."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kd_local.distill.class_groups import not_the_label
from kd_local.distill.sample_weights import batch_mean
from kd_local.distill.standardisation import logits_to_compare
from kd_local.ranges import Number
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
