"""Variational information distillation: the likelihood of the teacher's features given the student's."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.distill.connector import apply_connectors, init_connectors
from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import widened
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.stages import at_smaller_resolution, pair_stages
from kd_local.models.convolution import Conv
from kd_local.networks import Variables
from kd_local.ranges import Number, Weight, Weighted
from kd_local.shapes import check_arrays

EPSILON = 1e-5


def vid_loss(
    mean: Float[Array, "batch h w c"], teacher: Float[Array, "batch h w c"], log_scale: Float[Array, " c"]
) -> Float[Array, ""]:
    """The mean of ((t - mean)^2 / var + log var) / 2, where var = log(1 + exp(log_scale)) + 1e-5 for each channel.

    Reference: Ahn et al., "Variational information distillation for knowledge transfer" (CVPR 2019), eqs. 5 and 6.

    Raises:
        ValueError: the features differ in images or shape, or are no maps.
    """
    check_arrays(
        mean=(mean, "float batch h w c"), teacher=(teacher, "float batch h w c"), log_scale=(log_scale, "float c")
    )
    mean, teacher, log_scale = widened(mean, teacher, log_scale)
    variance = (jax.nn.softplus(log_scale) + EPSILON).reshape(1, 1, 1, -1)
    return (jnp.square(mean - teacher) / variance + jnp.log(variance)).mean() / 2


class Regressor(nn.Module):
    """Computes `vid_loss` with a predicted mean and a learnt variance for each channel.

    The mean is the student's features after three 1x1 convolutions with ReLU between them. Features of the larger
    resolution are first average-pooled to the smaller one.
    """

    init_variance: float = 5.0

    @nn.compact
    def __call__(
        self, student: Float[Array, "batch hs ws cs"], teacher: Float[Array, "batch ht wt ct"], *, train: bool
    ) -> Float[Array, ""]:
        x, teacher = at_smaller_resolution(student, teacher)
        channels = teacher.shape[-1]
        for i in range(1, 4):
            x = Conv(channels, kernel_size=1, dtype=student.dtype, name=f"conv{i}")(x if i == 1 else nn.relu(x))
        start = nn.initializers.constant(math.log(math.expm1(self.init_variance - EPSILON)))
        return vid_loss(x, teacher, self.param("log_scale", start, (channels,), jnp.float32))


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class VID(Objective):
    """ce_weight * cross entropy + weight * the sum of `vid_loss` over all stages except the stem.

    The variances are learnt, as in the paper; in the mdistiller code they are constant.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of the sum, 0 or larger.
        init_variance: initial variance of every channel, above 1e-5.

    Reference: Ahn et al. (CVPR 2019). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight, or an initial variance that is not above 1e-5.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 1.0
    init_variance: Annotated[float, Number(EPSILON, 1e4, open_low=True), _TERM] = 5.0

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        regressors, inputs = self._regressors(batch)
        return init_connectors(regressors, rng, inputs)

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        regressors, inputs = self._regressors(batch)
        each, _ = apply_connectors(regressors, variables, inputs, train=True)
        distillation = jnp.stack(list(each.values())).sum()
        return with_labels(batch, distillation, ce_weight=self.ce_weight, weight=self.weight)

    def _regressors(self, batch: EvaluationBatch) -> tuple[dict[str, Regressor], dict[str, tuple[Any, Any]]]:
        student, teacher = batch.student, batch.teacher
        inputs = {f"stage{s}": (student.features[s], teacher.features[t]) for s, t in pair_stages(student, teacher)}
        regressors = {name: Regressor(self.init_variance) for name in inputs}
        return regressors, inputs
