"""Small synthetic outputs of a student and a teacher, the inputs of an objective, without networks."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_local.distill.objective import Outputs, Pair, StrongView, TrainingBatch
from kd_local.models import create, resnet

CLASSES, EXAMPLES = 7, 11
STUDENT = ((8, 4), (8, 4), (4, 6), (2, 8))
TEACHER = ((8, 5), (8, 5), (4, 7), (2, 10))


@pytest.fixture(scope="session")
def outputs() -> Callable[..., Outputs]:
    """Random outputs of stages with these (resolution, channels), the stem first. ReLU gives the features."""

    def make(seed: int, stages: Sequence[tuple[int, int]], *, batch: int = 6, dtype: str = "float32") -> Outputs:
        rng = np.random.default_rng(seed)
        maps = [rng.standard_normal((batch, size, size, channels)).astype(dtype) for size, channels in stages]
        pooled = rng.standard_normal((batch, stages[-1][1])).astype(dtype)
        logits = (2 * rng.standard_normal((batch, CLASSES))).astype(dtype)
        features = tuple(jnp.asarray(np.maximum(x, 0)) for x in maps)
        last = rng.standard_normal((batch, 4, 4, stages[-1][1])).astype(dtype)
        preactivations = tuple(jnp.asarray(x) for x in maps)
        return Outputs(features, preactivations, *map(jnp.asarray, (pooled, logits, last)))

    return make


@pytest.fixture(scope="session")
def training_batches(outputs) -> Callable[..., TrainingBatch]:
    """A batch of such outputs. The teacher's remaining blocks are the mean over the map and a matrix."""

    def make(
        student: Sequence[tuple[int, int]] = STUDENT,
        teacher: Sequence[tuple[int, int]] = TEACHER,
        *,
        batch: int = 6,
        dtype: str = "float32",
        epoch: float = 100.0,
    ) -> TrainingBatch:
        rng = np.random.default_rng(3)
        matrix = jnp.asarray(rng.standard_normal((teacher[-1][1], CLASSES)).astype(dtype))

        def classify(stage: int, x: jax.Array, until: int | None = None) -> jax.Array:
            assert (stage, until) == (len(teacher) - 1, None)
            return x.mean(axis=1).mean(axis=1) @ matrix

        teacher_network = (
            resnet(8, classes=CLASSES, widths=(5, 5, 7, 10)) if len(teacher) == 4 else create("vgg8", classes=CLASSES)
        )
        of_stages = (student[-1][1], teacher[-1][1])
        bias = jnp.zeros(CLASSES, dtype)
        kernels = [jnp.asarray(rng.standard_normal((channels, CLASSES)).astype(dtype)) for channels in of_stages]
        params = [{"head": {"linear": {"dense": {"kernel": kernel, "bias": bias}}}} for kernel in kernels]
        return TrainingBatch(
            pair=Pair(resnet(8, classes=CLASSES, widths=(4, 4, 6, 8)), teacher_network),
            student=outputs(1, student, batch=batch, dtype=dtype),
            teacher=outputs(2, teacher, batch=batch, dtype=dtype),
            remaining_blocks=classify,
            labels=jnp.arange(batch, dtype=jnp.int32) % CLASSES,
            indices=jnp.arange(batch, dtype=jnp.int32) + 2,
            epoch=jnp.float32(epoch),
            rng=jax.random.key(7),
            strong=StrongView(
                outputs(4, student, batch=batch, dtype=dtype), outputs(5, teacher, batch=batch, dtype=dtype)
            ),
            student_params=params[0],
            teacher_variables={"params": params[1]},
        )

    return make


@pytest.fixture(scope="session")
def examples() -> int:
    """The size of the training set that the batches' indices point into."""
    return EXAMPLES
