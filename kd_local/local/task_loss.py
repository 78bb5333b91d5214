"""The loss of the labels: the cross entropy, with label smoothing and weights of the classes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kd_local.contract import Metrics
from kd_local.errors import check_type
from kd_local.local.losses import softmax
from kd_local.precision import at_least_float32
from kd_local.ranges import Number
from kd_local.shapes import check_arrays, check_labels

LABEL_SMOOTHING = Number(0, 1, open_high=True, example=0.1, note="0 is none")
CLASS_WEIGHT = Number(0, 1e9, open_low=True, example=1)


@dataclass(frozen=True, kw_only=True)
class TaskLoss:
    """The cross entropy of the labels in training; by default plain.

    With s the smoothing, w the weights of the classes (by default 1), k their number, y_i the label and p_i the
    probabilities of image i:

        loss = sum_i (-(1 - s) w[y_i] log p_i[y_i] - s / k sum_c w[c] log p_i[c]) / sum_i w[y_i]

    The sums are over the batch, on all devices. Accumulated gradients are averaged over batches, each divided by the
    weights of its own labels.

    >>> round(TaskLoss(label_smoothing=0.1)(jnp.zeros((1, 4)), jnp.array([2]))["loss"].item(), 4)
    1.3863

    Attributes:
        label_smoothing: s, from 0 (none) to below 1.
        class_weights: w, a number above 0 for each class; see `balanced_class_weights`.

    Raises:
        ValueError: a smoothing outside of [0, 1), or a weight that is no number above 0.

    Reference: Szegedy et al., "Rethinking the inception architecture" (CVPR 2016), section 7. The two combine as in
    PyTorch's CrossEntropyLoss.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        LABEL_SMOOTHING.check("label_smoothing", self.label_smoothing)
        if self.class_weights is None:
            return
        check_type("class_weights", self.class_weights, tuple, "use a tuple of numbers above 0, one for each class")
        for label, weight in enumerate(self.class_weights):
            CLASS_WEIGHT.check(f"class_weights[{label}]", weight)

    def __call__(self, logits: Float[Array, "batch k"], labels: Int[Array, " batch"]) -> Metrics:
        """The loss (in nats) and the accuracy in [0, 1], in float32 at least.

        Raises:
            ValueError: another number of classes than weights.
        """
        plain = softmax(logits, labels)
        if not self.options:
            return plain
        self.check_classes(logits.shape[-1])
        logits = logits.astype(at_least_float32(logits.dtype))
        weights = jnp.asarray(self.class_weights or (1.0,) * logits.shape[-1], logits.dtype)
        costs = -jax.nn.log_softmax(logits, axis=-1)
        of_labels = weights[labels]
        losses = of_labels * jnp.take_along_axis(costs, labels[:, None], axis=-1)[:, 0]
        if self.label_smoothing:
            of_classes = (costs * weights[None]).mean(axis=-1)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * of_classes
        return {**plain, "loss": losses.sum() / of_labels.sum()}

    @property
    def options(self) -> dict[str, object]:
        """The options that differ from the plain cross entropy, by name."""
        return {name: value for name, value in vars(self).items() if value != getattr(TaskLoss, name)}

    def check_classes(self, classes: int) -> None:
        """Checks that there is a weight for each class.

        Raises:
            ValueError: another number of weights.
        """
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers for {classes} classes: give one each"
            )

    def check_used(self, reason: str, way_out: str) -> None:
        """Refuses options where no loss would use them.

        Raises:
            ValueError: an option that differs from the plain cross entropy.
        """
        for name, value in self.options.items():
            raise ValueError(f"{name} is {value}, but {reason}: {way_out}, or leave {name} out")


PLAIN = TaskLoss()


def balanced_class_weights(labels: Int[np.ndarray, " n"], classes: int) -> tuple[float, ...]:
    """The weights n / (classes * n_c), with n_c the number of labels of class c. All classes
    then have the same total weight.

    >>> balanced_class_weights(np.array([0, 0, 0, 1]), 2)
    (0.6666666666666666, 2.0)

    Raises:
        ValueError: a class without a label, or labels that are no whole numbers from 0 to `classes` - 1.
    """
    Number(1, 10**6, whole=True).check("classes", classes)
    check_arrays(labels=(labels, "int n"))
    check_labels(labels, classes)
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        missing = int(np.flatnonzero(counts == 0)[0])
        raise ValueError(f"class {missing} has no training image, so no balanced weight: give the weights as numbers")
    return tuple((len(labels) / (classes * counts)).tolist())
