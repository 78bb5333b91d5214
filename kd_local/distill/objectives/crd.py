"""Contrastive representation distillation: student and teacher embeddings of an image should match, others should not.

The scores are computed for the whole memory, and then those of the drawn images are selected. For a training set much
larger than the number of draws, selecting first would be less work.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kd_local.distill.connector import apply_connectors, init_connectors
from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import product, unit_vectors, widened
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.models.layers import Linear
from kd_local.networks import Variables
from kd_local.precision import at_least_float32
from kd_local.ranges import Number, Weight, Weighted
from kd_local.shapes import check_arrays

EPSILON = 1e-7
SIDES = ("student", "teacher")
EXAMPLES = Number(2, 2**31 - 1, whole=True)
MOMENTUM = Number(0, 1, open_high=True, note="0 remembers the newest alone")


def crd_loss(
    positive: Float[Array, "batch 1"],
    negative: Float[Array, "batch k"],
    counted: Bool[Array, "batch k"],
    *,
    examples: int,
) -> Float[Array, ""]:
    """-log(p / (p + m/N)) - the sum of log((m/N) / (q + m/N)) over the counted negatives, the mean over the batch.

    Args:
        positive: p = exp(score / temperature) / Z of each image's own embedding.
        negative: q, the same for the embeddings of k drawn images.
        counted: True for the negatives that count; m is their number for an image.
        examples: N, the number of training images.

    Reference: Tian et al., "Contrastive representation distillation" (ICLR 2020), eqs. 10 and 19, and its code, whose
    1e-7 is added to both denominators.

    Raises:
        ValueError: the arrays do not fit each other, or there are fewer than 2 images.
    """
    EXAMPLES.check("examples", examples)
    check_arrays(
        positive=(positive, "float batch 1"), negative=(negative, "float batch k"), counted=(counted, "bool batch k")
    )
    noise = counted.sum(axis=1, keepdims=True).astype(positive.dtype) / examples
    log_positive = jnp.log(positive) - jnp.log(positive + noise + EPSILON)
    shares = jnp.where(counted, noise / (negative + noise + EPSILON), 1)
    return -(log_positive.sum() + jnp.log(shares).sum()) / len(positive)


def remember(
    memory: Float[Array, "examples dim"],
    indices: Int[Array, " batch"],
    embeddings: Float[Array, "batch dim"],
    *,
    momentum: float,
) -> Float[Array, "examples dim"]:
    """The memory after an update at `indices`: momentum * old + (1 - momentum) * embeddings, as unit vectors.

    Raises:
        ValueError: the arrays do not fit each other, or the momentum is out of range.
    """
    MOMENTUM.check("momentum", momentum)
    check_arrays(
        memory=(memory, "float examples dim"),
        indices=(indices, "int batch"),
        embeddings=(embeddings, "float batch dim"),
    )
    old = memory[indices]
    new = unit_vectors(momentum * old + (1 - momentum) * embeddings.astype(memory.dtype))
    return memory.at[indices].set(new)


class Embedding(nn.Module):
    """A linear layer, whose output is divided by its norm, in float32 at least."""

    dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch c"], *, train: bool) -> Float[Array, "batch dim"]:
        return unit_vectors(*widened(Linear(self.dim, dtype=x.dtype, name="linear")(x)))


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class CRD(Objective):
    """ce_weight * cross entropy + weight * (`crd_loss` of the student's embeddings with the teacher's memory + the
    reverse).

    Each network has a learnt linear map, which turns pooled features into an embedding, a unit vector. The memory, in
    `batch_stats`, contains both networks' embeddings of every training image, the labels of the images seen so far, and
    each network's Z, which the first batch sets. Negatives are drawn uniformly from all images; those known to be of
    the image's class are not counted. (The published code draws only from other classes.)

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of the contrastive terms, 0 or larger.
        dim: length of an embedding, above 0.
        negatives: number of negatives drawn for each image, above 0; at most the number of training images minus one.
        temperature: divides the scores, above 0.
        momentum: share of the old embedding kept in the memory at an update, in [0, 1).

    Reference: Tian et al. (ICLR 2020), section 3. The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight; `dim`, `negatives` or a temperature not above 0; a momentum outside of [0, 1).
    """

    needs_indices: ClassVar[bool] = True
    ce_weight: Weight = 1.0
    weight: Weight = 0.8
    dim: Annotated[int, Number(1, 65536, whole=True), _TERM] = 128
    negatives: Annotated[int, Number(1, 10**7, whole=True), _TERM] = 16384
    temperature: Annotated[float, Number(0.02, 1e4, example=0.07), _TERM] = 0.07
    momentum: Annotated[float, MOMENTUM, _TERM] = 0.5

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        if examples is None:
            raise ValueError(
                "CRD stores an embedding of every training image: give Distillation their number, as examples="
            )
        if examples < 2:
            raise ValueError(
                f"a training set of {examples} image: CRD contrasts an image with others; use 2 or more images"
            )
        embed_key, *keys = jax.random.split(rng, 3)
        inputs = {"student": (batch.student.pooled,), "teacher": (batch.teacher.pooled,)}
        variables = init_connectors(self._embeddings(), embed_key, inputs)
        memory = {"labels": jnp.full((examples,), -1, jnp.int32)}
        bound = (3 / self.dim) ** 0.5
        for (side, (pooled,)), key in zip(inputs.items(), keys, strict=True):
            wide = at_least_float32(pooled.dtype)
            memory[side] = jax.random.uniform(key, (examples, self.dim), wide, -bound, bound)
            memory[f"{side}_z"] = jnp.zeros((), wide)
        variables["batch_stats"]["memory"] = memory
        return variables

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        memory = dict(variables["batch_stats"]["memory"])
        indices, labels = batch.indices, batch.labels.astype(jnp.int32)
        examples = len(memory["labels"])
        memory["labels"] = memory["labels"].at[indices].set(labels)
        shape = (len(indices), min(self.negatives, examples - 1))
        drawn = jax.random.randint(batch.rng, shape, 0, examples, indices.dtype)
        counted = memory["labels"][drawn] != labels[:, None]
        pooled = {"student": (batch.student.pooled,), "teacher": (batch.teacher.pooled,)}
        embeddings, _ = apply_connectors(self._embeddings(), variables, pooled, train=True)
        total = jnp.zeros((), embeddings["student"].dtype)
        for side, other in zip(SIDES, reversed(SIDES), strict=True):
            # In this side's dtype, also if the other side's is narrower.
            embedding, others = widened(embeddings[side], memory[other])
            scores = jnp.exp(product(embedding, others.T) / self.temperature)
            positive = jnp.take_along_axis(scores, indices[:, None], axis=1)
            negative = jnp.take_along_axis(scores, drawn, axis=1)
            z = self._normaliser(memory[f"{side}_z"], positive, negative, counted, examples)
            memory[f"{side}_z"] = z
            total += crd_loss(positive / z, negative / z, counted, examples=examples).astype(total.dtype)
        for side in SIDES:
            new = jax.lax.stop_gradient(embeddings[side])
            memory[side] = remember(memory[side], indices, new, momentum=self.momentum)
        return with_labels(batch, total, ce_weight=self.ce_weight, weight=self.weight, batch_stats={"memory": memory})

    def _embeddings(self) -> dict[str, Embedding]:
        return {side: Embedding(self.dim) for side in SIDES}

    def _normaliser(self, z: Array, positive: Array, negative: Array, counted: Array, examples: int) -> Array:
        """Z. While Z is 0, it is computed as examples * the mean of exp(score / temperature)."""
        count = counted.sum().astype(positive.dtype) + len(positive)
        mean = (positive.sum() + jnp.where(counted, negative, 0).sum()) / count
        return jax.lax.stop_gradient(jnp.where(z > 0, z, examples * mean.astype(z.dtype)))
