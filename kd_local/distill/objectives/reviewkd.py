"""Knowledge review: a stage's features are fused with those of deeper stages and compared with the teacher's."""

from dataclasses import dataclass
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.distill.cross_entropy import with_labels
from kd_local.distill.numerics import widened
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, TrainingBatch
from kd_local.distill.stages import pair_stages
from kd_local.distill.warmup import warmup
from kd_local.models.convolution import Conv, uniform_by_fan_in
from kd_local.models.layers import ConvNorm, average_pool_to
from kd_local.networks import Collection, Variables, by_block, of_block
from kd_local.ranges import Flag, Number, WarmupEpochs, Weight, Weighted
from kd_local.shapes import check_arrays

POOLED_SIZES = (4, 2, 1)


def hcl_loss(student: Float[Array, "batch h w c"], teacher: Float[Array, "batch h w c"]) -> Float[Array, ""]:
    """The hierarchical context loss: a weighted mean of mean squared differences at several resolutions.

    The resolutions are the full one, with weight 1, and 4x4, 2x2 and 1x1 if they are smaller, by average pooling. Each
    has half the weight of the resolution before it.

    Reference: Chen et al., "Distilling knowledge via knowledge review" (CVPR 2021), section 3.4.

    Raises:
        ValueError: the features differ in images or shape, or are no maps.
    """
    check_arrays(student=(student, "float batch h w c"), teacher=(teacher, "float batch h w c"))
    student, teacher = widened(student, teacher)
    total, weight, weights = jnp.square(student - teacher).mean(), 1.0, 1.0
    for size in POOLED_SIZES:
        if size < min(student.shape[1:3]):
            weight /= 2
            difference = average_pool_to(student, (size, size)) - average_pool_to(teacher, (size, size))
            total += weight * jnp.square(difference).mean()
            weights += weight
    return total / weights


def resize_nearest(x: Float[Array, "batch hx wx c"], size: tuple[int, int]) -> Float[Array, "batch h w c"]:
    """Output i is input floor(i * inputs / outputs), in height and in width (PyTorch's `nearest`)."""
    for axis, outputs in zip((1, 2), size, strict=True):
        if x.shape[axis] != outputs:
            x = jnp.take(x, np.arange(outputs) * x.shape[axis] // outputs, axis=axis)
    return x


class ABF(nn.Module):
    """Attention-based fusion of a stage's features, after a 1x1 convolution, with those of deeper stages.

    The deeper features are resized to the stage's resolution. The two are added with weights in (0, 1), which a 1x1
    convolution of both computes for each position.

    Attributes:
        middle: channels of the features passed to the stage before.
        shape: (h', w', c') of the teacher's features.

    Reference: Chen et al. (CVPR 2021), section 3.3.
    """

    middle: int
    shape: tuple[int, int, int]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w c"], deeper: Float[Array, "batch hd wd middle"] | None = None, *, train: bool
    ) -> tuple[Float[Array, "batch h2 w2 c2"], Float[Array, "batch h2 w2 middle"]]:
        """The output to compare with the teacher's features, and the features passed to the stage before."""
        height, width, channels = self.shape
        x = ConvNorm(self.middle, kernel_size=1, relu=False, dtype=x.dtype, name="conv1")(x, train=train)
        if deeper is not None:
            deeper = resize_nearest(deeper, (x.shape[1], x.shape[2]))
            both = jnp.concatenate([x, deeper], axis=-1)
            initialiser = uniform_by_fan_in(2 * self.middle)
            attention = nn.sigmoid(
                Conv(2, kernel_size=1, use_bias=True, dtype=x.dtype, kernel_init=initialiser, name="attention")(both)
            )
            x = x * attention[..., :1] + deeper * attention[..., 1:]
        x = resize_nearest(x, (height, width))
        output = ConvNorm(channels, kernel_size=3, relu=False, dtype=x.dtype, name="conv2")(x, train=train)
        return output, x


_TERM = Weighted(("weight",))


@dataclass(frozen=True)
class ReviewKD(Objective):
    """ce_weight * cross entropy + weight * min(epoch / warmup_epochs, 1) * the sum of `hcl_loss` over all stages
    except the stem, and over the pooled features as a 1x1 map.

    Attributes:
        ce_weight: weight of the cross entropy of the labels, 0 or larger.
        weight: weight of the sum, 0 or larger; published: 0.6 to 8, by pair.
        warmup_epochs: epochs over which the weight of the sum grows linearly, 0 or more; 0 for no warm-up.
        max_middle: limit, above 0, on the channels passed between stages; they are those of the student's last map.
        preactivations: True to use the student's features before ReLU; the teacher's are always taken before ReLU.

    Reference: Chen et al. (CVPR 2021). The defaults are those of the mdistiller protocol for CIFAR-100.

    Raises:
        ValueError: a negative weight, or no channels.
    """

    ce_weight: Weight = 1.0
    weight: Weight = 1.0
    warmup_epochs: Annotated[WarmupEpochs, _TERM] = 20
    max_middle: Annotated[int, Number(1, 65536, whole=True), _TERM] = 512
    preactivations: Annotated[Flag, _TERM] = False

    @property
    def needs_epoch(self) -> bool:
        return self.warmup_epochs > 0

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        modules, levels = self._modules(batch)
        created = {}
        deeper: tuple[Any, ...] = ()
        for (name, module), key in zip(modules.items(), jax.random.split(rng, len(modules)), strict=True):
            x = _zeros(levels[name][0])
            created[name] = jax.jit(module.init, static_argnames="train")(key, x, *deeper, train=False)
            height, width, _ = module.shape
            deeper = (jnp.zeros((x.shape[0], height, width, module.middle), x.dtype),)
        return by_block(created)

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        modules, levels = self._modules(batch)
        each: list[Array] = []
        batch_stats: Collection = {}
        deeper: tuple[Array, ...] = ()
        for name, module in modules.items():
            own = of_block(variables, name)
            x, target = (_as_map(level) for level in levels[name])
            (output, handed_on), updated = module.apply(own, x, *deeper, train=True, mutable=["batch_stats"])
            batch_stats[name] = updated["batch_stats"]
            each.append(hcl_loss(output, target))
            deeper = (handed_on,)
        return with_labels(
            batch,
            jnp.stack(each).sum(),
            ce_weight=self.ce_weight,
            weight=self.weight * warmup(batch.epoch, self.warmup_epochs),
            batch_stats=batch_stats,
        )

    def _modules(self, batch: EvaluationBatch) -> tuple[dict[str, ABF], dict[str, tuple[Any, Any]]]:
        """Modules and (student, teacher) by name, the deepest first."""
        student, teacher = batch.student, batch.teacher
        features = student.preactivations if self.preactivations else student.features
        levels = {"pooled": (student.pooled, teacher.pooled)}
        for s, t in reversed(pair_stages(student, teacher)):
            levels[f"stage{s}"] = (features[s], teacher.preactivations[t])
        middle = min(self.max_middle, student.pooled.shape[-1])
        modules = {}
        for name, (_, target) in levels.items():
            height, width, channels = target.shape[1:] if target.ndim == 4 else (1, 1, target.shape[-1])
            modules[name] = ABF(middle, (height, width, channels))
        return modules, levels


def _as_map(x: Array) -> Array:
    return x if x.ndim == 4 else x.reshape(x.shape[0], 1, 1, x.shape[1])


def _zeros(like: Any) -> Array:
    return _as_map(jnp.zeros(like.shape, like.dtype))
