"""Distillation: a student learns from labels and from frozen teachers, by an objective.

One program applies the student and each teacher once. The objective computes a loss from their outputs, and the
gradient of this loss updates the student and the connectors. Teachers are frozen parts of the state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import STRONG_VIEW, Metrics, Program, State
from kd_local.distill.feature_checks import check_features
from kd_local.distill.objective import (
    EvaluationBatch,
    Objective,
    ObjectiveLoss,
    Outputs,
    Pair,
    StrongView,
    TrainingBatch,
)
from kd_local.distill.outputs import output_shapes, outputs
from kd_local.distill.teacher import Renormalisation, Teacher, remaining_blocks, renormalised
from kd_local.distill.trained_blocks import trained_blocks
from kd_local.errors import check_type
from kd_local.local.losses import softmax
from kd_local.local.task_loss import PLAIN, TaskLoss
from kd_local.networks import Network, Variables, by_block, check_network, of_block
from kd_local.ranges import Number
from kd_local.state import Part, apply_gradients, check_optimizer, new_part, update_part, variables_of
from kd_local.two_gradients import Optimizer, TwoGradientOptimizer, two_gradients

NAME = "student"


@dataclass(frozen=True)
class Distillation:
    """Trains a whole student with one program. An objective computes the loss from the student's and teachers' outputs.

    >>> import optax
    >>> from kd_local.distill import KD, Distillation, Teacher
    >>> from kd_local.models import create
    >>> teacher, student = create("resnet20", classes=10), create("resnet8", classes=10)
    >>> variables = teacher.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    >>> method = Distillation(student, (Teacher(teacher, variables),), KD(), optax.sgd(0.1))

    Attributes:
        student: the network to train.
        teachers: one or more. The loss is the mean over the teachers; each has its own connectors.
        objective: computes the loss, including the cross entropy of the labels.
        optimizer: updates the student and the connectors. If it takes two gradients (`make_optimizer(dot=...)`), they
            are those of `ObjectiveLoss.task` and `ObjectiveLoss.distillation`.
        examples: the number of training images, for an objective that stores a vector for each image (`CRD`).
        task_loss: the cross entropy of the labels.
        cached: if True, no teacher runs: the extra tensors `teacher0_logits`, ... contain the teachers' logits, and
            `teacher0_strong_logits`, ... those of the strong view.

    Raises:
        ValueError: an argument has another type, there is no teacher, a number is out of range, or the objective reads
            more than logits and `cached` is set or a network has no maps.
    """

    student: Network
    teachers: tuple[Teacher, ...]
    objective: Objective
    optimizer: Optimizer
    examples: int | None = field(default=None, kw_only=True)
    cached: bool = field(default=False, kw_only=True)
    task_loss: TaskLoss = field(default=PLAIN, kw_only=True)

    def __post_init__(self) -> None:
        check_network("student", self.student)
        check_type("teachers", self.teachers, tuple, "use a tuple, such as (Teacher(network, variables),)")
        for teacher in self.teachers:
            check_type("a teacher", teacher, Teacher, "use Teacher(network, variables)")
        check_type("objective", self.objective, Objective, "use an objective, such as KD()")
        if not isinstance(self.optimizer, TwoGradientOptimizer):
            check_optimizer(self.optimizer)
        check_type("task_loss", self.task_loss, TaskLoss, "use TaskLoss(label_smoothing=0.1), or leave it out")
        if not self.teachers:
            raise ValueError("no teacher: give at least one")
        if self.objective.task_weight == 0:
            self.task_loss.check_used("the cross entropy of the labels has weight 0", "use a larger weight")
        if self.examples is not None:
            Number(1, 2**31 - 1, whole=True, note="the number of training images").check("examples", self.examples)
        check_features(self.objective, self.student, tuple(teacher.network for teacher in self.teachers))
        if self.cached and self.objective.reads != "logits":
            raise ValueError(
                f"{self.objective.label} reads the teacher's features, and a cache has its logits only: train "
                "without a cache"
            )

    @property
    def cached_tensors(self) -> tuple[str, ...]:
        """The names of the tensors with the teachers' logits: of the weak views, and then of the strong views."""
        views = ("logits", "strong_logits") if self.objective.needs_strong_view else ("logits",)
        return tuple(f"{name}_{view}" for view in views for name, _ in self.pairs)

    @property
    def pairs(self) -> tuple[tuple[str, Pair], ...]:
        """`(name, pair)` for each teacher: the name of its part of the state, and the student with this teacher."""
        return tuple((f"teacher{i}", Pair(self.student, teacher.network)) for i, teacher in enumerate(self.teachers))

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> State:
        """A new student, new connectors, and copies of the teachers. Only the shape and dtype of `images` matter.

        Raises:
            ValueError: a teacher's variables do not fit its network, or the two networks do not fit each other.
        """
        student_rng, *rngs = jax.random.split(rng, 1 + len(self.teachers))
        images = jax.ShapeDtypeStruct(images.shape, images.dtype)
        created = {NAME: self.student.init(student_rng, images)}
        shapes = output_shapes(self.student, images)
        state: State = {}
        for (name, pair), teacher, key in zip(self.pairs, self.teachers, rngs, strict=True):
            teacher.network.check(teacher.variables, images)
            remaining = partial(remaining_blocks, pair.teacher, teacher.variables)
            of_teacher = output_shapes(pair.teacher, images)
            batch = EvaluationBatch(pair, shapes, of_teacher, remaining, teacher_variables=teacher.variables)
            created[name] = self.objective.init(key, batch, examples=self.examples)
            # Copied, because a step may donate the state, and the teacher's arrays belong to the caller.
            state[name] = jax.tree.map(jnp.array, variables_of(teacher.variables))
        part = new_part(by_block(created), self.optimizer)
        return {NAME: part} if self.cached else {NAME: part, **state}

    def programs(self) -> tuple[Program, ...]:
        """One program for the whole step."""
        names = tuple(name for name, _ in self.pairs)
        maps = tuple(teacher.renormalisation for teacher in self.teachers)
        settings = _Settings(self.pairs, maps, self.objective, self.optimizer, self.cached, self.task_loss)
        return (
            Program(
                name=NAME,
                key=settings,
                function=partial(_teach, settings),
                reads=(
                    "images",
                    "labels",
                    *((STRONG_VIEW,) if self.objective.needs_strong_view else ()),
                    *(("indices",) if self.objective.needs_indices else ()),
                    *(("epoch",) if self.objective.needs_epoch else ()),
                    *(self.cached_tensors if self.cached else ()),
                ),
                frozen=() if self.cached else names,
            ),
        )

    def logits(self, state: State, images: Float[Array, "batch h w c"]) -> Float[Array, "batch classes"]:
        """The logits of the deployed network, in evaluation mode. For most objectives it is the student."""
        logits = [self.objective.logits(own, batch) for _, own, batch in self._evaluation_batches(state, images)]
        return logits[0] if self.objective.deploys_student else jnp.stack(logits).mean(0)

    def exits(self, state: State, images: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "batch classes"]]:
        """The logits of the stepping stones by name, such as `stone1` or, with several teachers, `teacher0-stone1`."""
        found: dict[str, Array] = {}
        for name, own, batch in self._evaluation_batches(state, images):
            prefix = f"{name}-" if len(self.teachers) > 1 else ""
            found |= {f"{prefix}{stone}": logits for stone, logits in self.objective.exits(own, batch).items()}
        return found

    def deployed(self, state: State) -> Mapping[str, Any]:
        """The parameters that `logits` uses."""
        params = state[NAME]["params"]
        if self.objective.deploys_student:
            return params[NAME]
        return {
            name: self.objective.deployed(pair, params[NAME], params[name], state[name]["params"])
            for name, pair in self.pairs
        }

    def teacher_logits(
        self, state: State, images: Float[Array, "batch h w c"]
    ) -> dict[str, Float[Array, "batch classes"]]:
        """The logits of each teacher by name, in evaluation mode."""
        return {
            name: teacher.network.apply(
                teacher.variables if self.cached else state[name],
                renormalised(images, teacher.renormalisation),
                train=False,
            )[0]
            for (name, _), teacher in zip(self.pairs, self.teachers, strict=True)
        }

    @property
    def deployed_program(self) -> str | None:
        """The name of the student's program; None if the objective deploys other blocks with the student."""
        return NAME if self.objective.deploys_student else None

    def network_variables(self, state: State) -> Variables | None:
        """The student's variables; None if the objective deploys other blocks with the student."""
        return of_block(state[NAME], NAME) if self.objective.deploys_student else None

    def _evaluation_batches(self, state: State, images: Array) -> list[tuple[str, Any, EvaluationBatch]]:
        part = state[NAME]
        student, _ = outputs(self.student, of_block(part, NAME), images, train=False)
        batches = []
        for name, pair in self.pairs:
            variables = state.get(name, {})
            remaining, shapes = partial(remaining_blocks, pair.teacher, variables), output_shapes(pair.teacher, images)
            batch = EvaluationBatch(pair, student, shapes, remaining, teacher_variables=variables)
            batches.append((name, of_block(part, name), batch))
        return batches


@dataclass(frozen=True)
class _Settings:
    """The parts of a step that are fixed when it is compiled."""

    pairs: tuple[tuple[str, Pair], ...]
    renormalisations: tuple[Renormalisation | None, ...]
    objective: Objective
    optimizer: Optimizer
    cached: bool
    task_loss: TaskLoss


def _teach(
    settings: _Settings,
    part: Part,
    frozen: tuple[Any, ...],
    tensors: tuple[Array, ...],
    rng: PRNGKeyArray,
    constants: Float[Array, "0"],
) -> tuple[Part, tuple[()], Metrics]:
    images, labels, *further = tensors
    objective = settings.objective
    strong = further.pop(0) if objective.needs_strong_view else None
    indices = further.pop(0) if objective.needs_indices else jnp.zeros_like(labels)
    rngs = jax.random.split(rng, len(settings.pairs))
    epoch = further.pop(0) if objective.needs_epoch else jnp.ones((), jnp.float32)
    if settings.cached:
        frozen = ({},) * len(settings.pairs)
        of_views = [Outputs.of_logits(logits) for logits in further]
        teacher_outputs, strong_teacher_outputs = of_views[: len(rngs)], of_views[len(rngs) :]
    else:
        teacher_outputs = _outputs_of_teachers(settings, frozen, images)
        strong_teacher_outputs = [] if strong is None else _outputs_of_teachers(settings, frozen, strong)

    def terms(params: Any) -> tuple[list[ObjectiveLoss], tuple[Any, Metrics]]:
        whole = {**part, "params": params}
        network, own = settings.pairs[0][1].student, of_block(whole, NAME)
        student, statistics = outputs(network, own, images, train=True)
        if strong is not None:
            strong_student, statistics = outputs(network, {**own, "batch_stats": statistics}, strong, train=True)
        batch_stats, losses = {NAME: statistics}, []
        for i, ((name, pair), variables, key) in enumerate(zip(settings.pairs, frozen, rngs, strict=True)):
            batch = TrainingBatch(
                pair=pair,
                student=student,
                teacher=teacher_outputs[i],
                remaining_blocks=partial(remaining_blocks, pair.teacher, variables),
                labels=labels,
                indices=indices,
                epoch=epoch,
                rng=key,
                task_loss=settings.task_loss,
                strong=None if strong is None else StrongView(strong_student, strong_teacher_outputs[i]),
                student_remaining_blocks=partial(trained_blocks, pair.student, own.get("params", {})),
                student_params=own.get("params", {}),
                teacher_variables=variables,
                teacher_images=renormalised(images, settings.renormalisations[i]),
            )
            losses.append(objective.loss(of_block(whole, name), batch))
            batch_stats[name] = losses[-1].batch_stats
        total = jnp.stack([each.total for each in losses]).mean()
        means = jax.tree.map(lambda *values: jnp.stack(values).mean(), *(each.metrics for each in losses))
        accuracy = softmax(student.logits, labels)["accuracy"]
        return losses, (batch_stats, {**means, "loss": total, "accuracy": accuracy})

    if isinstance(settings.optimizer, TwoGradientOptimizer):
        gradients, (batch_stats, metrics) = two_gradients(partial(_apart, terms), part["params"])
        return apply_gradients(part, settings.optimizer, gradients, batch_stats), (), metrics
    part, _, metrics = update_part(part, settings.optimizer, partial(_together, terms))
    return part, (), metrics


def _together(terms: Callable[[Any], Any], params: Any) -> tuple[Array, Any]:
    _, (batch_stats, metrics) = terms(params)
    return metrics["loss"], (batch_stats, metrics)


def _apart(terms: Callable[[Any], Any], params: Any) -> tuple[tuple[Array, Array], Any]:
    losses, aux = terms(params)
    task, distillation = ([getattr(each, name) for each in losses] for name in ("task", "distillation"))
    return (jnp.stack(task).mean(), jnp.stack(distillation).mean()), aux


def _outputs_of_teachers(settings: _Settings, frozen: tuple[Any, ...], images: Array) -> list[Outputs]:
    """The outputs of each teacher, without gradients."""
    found = [
        outputs(pair.teacher, variables, renormalised(images, by), train=False)[0]
        for (_, pair), by, variables in zip(settings.pairs, settings.renormalisations, frozen, strict=True)
    ]
    return jax.lax.stop_gradient(found)
