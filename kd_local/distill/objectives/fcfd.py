"""FCFD: features of student and teacher are consistent if each network's later stages can use those of the other.

Both networks have stages 0 to n - 1. A path names the network of each stage, 0 for the teacher and 1 for the student.
After the pure paths 00...0 (T) and 11...1 (S), mixture paths change the network once, through a bridge: for n = 4 they
are 1100, 1110 (student to teacher), 0011 and 0001 (teacher to student).

Reference: Liu, Kan, Shan and Chen, "Function-consistent feature distillation" (ICLR 2023, arXiv 2304.11832).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.distill.bridge import Bridge
from kd_local.distill.chosen_term import if_chosen
from kd_local.distill.connector import apply_connectors, init_connectors
from kd_local.distill.mixture_paths import MixturePath, bridge_name, bridges_to, follow, mixture_paths, sample
from kd_local.distill.objective import EvaluationBatch, Objective, ObjectiveLoss, Pair, TrainingBatch
from kd_local.distill.objectives.fitnet import hint_loss
from kd_local.distill.objectives.kd import kd_loss
from kd_local.distill.outputs import outputs
from kd_local.distill.staged import StagedNetwork, pooled_after_relu
from kd_local.distill.trained_blocks import after_stage, statistics_at_zero
from kd_local.distill.warmup import warmup
from kd_local.networks import Collection, Variables
from kd_local.ranges import Choice, Number, Temperature, WarmupEpochs, Weight, Weighted

TEACHER = "teacher"
_FEATURES = Weighted(("feature_weight",))
_PATHS = Weighted(("mixture_weight", "feature_weight"))


@dataclass(frozen=True)
class FCFD(Objective):
    """ce_weight CE(S) + kd_weight KL(S, T) + c_mix sum_p KL(p, T) + w2 r sum_i A_i, with p over the sampled paths:

        KL(a, b) = t^2 KL(softmax(b / t) || softmax(a / t)), the mean over the batch, without gradients to b
        A_i      = sum_f MSE(f, F_i), and for the last stage also MSE(GAP(ReLU(f)), GAP(ReLU(F_i)))
        r        = min(epoch / warmup_epochs, 1), with the epoch counted from 1

    F_i are the teacher's features of stage i. f are all other features in their space: the student's through the bridge
    of stage i >= 1, and those of sampled paths at a teacher's stage i that follows a student's stage. `StagedNetwork`
    defines features, `Bridge` the bridges. Each stage >= 1 has a bridge in both directions. Mixture paths have no
    cross entropy, and the student learns nothing from their logits.

    A stage of a mixture path has the parameters of its network. A student's stage normalises with statistics of the
    batch. Each path has its own running statistics of it. They start at zero and are never read, since mixture paths
    do not run in evaluation. A teacher's stage normalises with the teacher's statistics, or with
    `teacher_batch_norm="batch"` like a student's.

    A path that is not sampled is not computed. Each path is a conditional that computes the loss together with its
    gradients, see `if_chosen`.

    Published w2, c_mix and t by pair, CIFAR-100: R56-R20 .02, 1, 4; WRN-40-2-WRN-16-2 5, .2, 4; R50-MobileNetV2 and
    R32x4-ShuffleNets 5, 1, 8; R32x4-R8x4, VGG13-VGG8 and WRN-40-2-WRN-40-1 5, 1, 4. ImageNet, R34-R18: .02, 1, 1.

    Quirks: the bridge from teacher to student at the last stage is never used, as published. A bridge that no sampled
    path uses has a zero gradient, but momentum and weight decay still move it; PyTorch's optimizer skips it.

    Attributes:
        ce_weight: weight of CE(S), the cross entropy of the labels, 0 or larger; published: 1.
        kd_weight: weight of KL(S, T), 0 or larger; published: 1.
        mixture_weight: c_mix, weight of the divergences of mixture paths, 0 or larger; published: 0.2 or 1, by pair.
        feature_weight: w2, weight of the squared differences, 0 or larger; published: 0.02 or 5, by pair.
        temperature: t, above 0; published: 1, 4 or 8, by pair.
        sampled: the number of mixture paths in a step, drawn without replacement, at least 1.
        warmup_epochs: epochs over which the weight of the squared differences grows, 0 or more; 0 for no warm-up.
        teacher_batch_norm: `running`: the teacher normalises with its own running statistics. `batch`: as published, it
            normalises with statistics of the batch, in its own pass too. The objective then has copies of its running
            statistics, which drift.

    Reference: Liu et al. (arXiv 2304.11832). The defaults are the published ones for R32x4-R8x4, VGG13-VGG8 and
    WRN-40-2-WRN-40-1 on CIFAR-100, except for `teacher_batch_norm`.

    Raises:
        ValueError: a negative weight, a temperature that is not above 0, or an unknown way to normalise.
    """

    ce_weight: Weight = 1.0
    kd_weight: Weight = 1.0
    mixture_weight: Weight = 1.0
    feature_weight: Weight = 5.0
    temperature: Annotated[Temperature, Weighted(("kd_weight", "mixture_weight"))] = 4.0
    sampled: Annotated[int, Number(1, 1000, whole=True, example=2), _PATHS] = 2
    warmup_epochs: Annotated[WarmupEpochs, _FEATURES] = 20
    teacher_batch_norm: Annotated[str, Choice("teacher batch norm", ("running", "batch"))] = "running"

    @property
    def needs_epoch(self) -> bool:
        return self.warmup_epochs > 0

    def init(self, rng: PRNGKeyArray, batch: EvaluationBatch, *, examples: int | None = None) -> Variables:
        student, teacher = StagedNetwork(batch.pair.student), StagedNetwork(batch.pair.teacher)
        self._check(student, teacher)
        shapes = {True: student.feature_shapes(batch.student), False: teacher.feature_shapes(batch.teacher)}
        bridges = {**bridges_to(teacher, shapes[False], True), **bridges_to(student, shapes[True], False)}
        inputs = {bridge_name(i, to): [x[i]] for to, x in shapes.items() for i in range(1, student.count)}
        variables = init_connectors(bridges, rng, inputs)
        statistics = dict(variables["batch_stats"])
        of_teacher = batch.teacher_variables.get("batch_stats", {})
        for path in mixture_paths(student.count):
            if not path.to_teacher:
                entering = batch.student.features[path.switch]
                statistics[path.name] = statistics_at_zero(after_stage(batch.pair.student, path.switch), entering)
            elif self._batch:
                own = after_stage(batch.pair.teacher, path.switch).select({"batch_stats": of_teacher})["batch_stats"]
                statistics[path.name] = jax.tree.map(jnp.zeros_like, own)
        if self._batch:
            statistics[TEACHER] = jax.tree.map(jnp.array, of_teacher)
        return {**variables, "batch_stats": statistics}

    def loss(self, variables: Variables, batch: TrainingBatch) -> ObjectiveLoss:
        step = self.step(variables, batch)
        cross_entropy = batch.task_loss(batch.student.logits, batch.labels)["loss"]
        divergence = kd_loss(batch.student.logits, step.logits, temperature=self.temperature)
        differences = jnp.stack([*feature_differences(dict(enumerate(step.bridged, start=1)), step.features).values()])
        weight = self.feature_weight * warmup(batch.epoch, self.warmup_epochs).astype(differences.dtype)
        distillation = self.kd_weight * divergence + weight * differences.sum()
        metrics = {"divergence": jnp.zeros_like(divergence), "differences": differences.sum()}
        statistics, paths = {**variables["batch_stats"], **step.statistics}, step.paths
        for path, chosen in zip(paths, sample(batch.rng, self.sampled, len(paths)), strict=True):
            term = partial(_path_loss, self, batch.pair, path, step.bridges[path.bridge])
            trained, fixed = step.inputs(path, variables, batch)
            fixed |= {"target": (step.features, step.logits), "weight": weight}
            loss, terms, updated = if_chosen(term, chosen, trained, fixed)
            distillation += loss
            metrics = jax.tree.map(jnp.add, metrics, terms)
            statistics |= updated
        return ObjectiveLoss(
            task=self.ce_weight * cross_entropy,
            distillation=distillation,
            metrics={
                "cross_entropy": cross_entropy,
                "distillation": divergence,
                "mixtures": metrics["divergence"],
                "features": metrics["differences"],
            },
            batch_stats=statistics,
        )

    def step(self, variables: Variables, batch: TrainingBatch) -> "Step":
        """The tensors that all paths share."""
        student, teacher = StagedNetwork(batch.pair.student), StagedNetwork(batch.pair.teacher)
        of_teacher, found, statistics = batch.teacher_variables, batch.teacher, {}
        if self._batch:
            of_teacher = {**of_teacher, "batch_stats": variables["batch_stats"][TEACHER]}
            found, statistics[TEACHER] = outputs(batch.pair.teacher, of_teacher, batch.teacher_images, train=True)
        targets = jax.lax.stop_gradient((teacher.features(found, of_teacher, train=self._batch), found.logits))
        features = student.features(batch.student, {"params": batch.student_params}, train=True)
        to_teacher = bridges_to(teacher, targets[0], True)
        inputs = {bridge_name(i, True): [features[i]] for i in range(1, student.count)}
        bridged, of_bridges = apply_connectors(to_teacher, variables, inputs, train=True)
        bridges = {**to_teacher, **bridges_to(student, features, False)}
        return Step(*targets, tuple(bridged.values()), bridges, {**statistics, **of_bridges})

    @property
    def _batch(self) -> bool:
        return self.teacher_batch_norm == "batch"

    def _check(self, student: StagedNetwork, teacher: StagedNetwork) -> None:
        if student.count != teacher.count:
            raise ValueError(
                f"FCFD needs a student and a teacher with equal numbers of stages, but the student has {student.count} "
                f"and the teacher {teacher.count}: use another network, or block_kd, which pairs the last stages"
            )
        paths = len(mixture_paths(student.count))
        if paths < self.sampled:
            way_out = f"use 1 to {paths}" if paths else "use networks of three or more stages"
            raise ValueError(
                f"sampled is {self.sampled}, but networks of {student.count} stages have {paths} mixture paths: "
                f"{way_out}"
            )


@dataclass(frozen=True)
class Step:
    """The tensors of a step that all paths share.

    Attributes:
        features: the teacher's, by stage; without gradient.
        logits: the teacher's; without gradient.
        bridged: the student's features through the bridges, from stage 1.
        bridges: the modules, by name.
        statistics: of the bridges to the teacher and of the teacher's own pass, after the step.
    """

    features: tuple[Float[Array, "batch _ _ _"], ...]
    logits: Float[Array, "batch classes"]
    bridged: tuple[Float[Array, "batch _ _ _"], ...]
    bridges: Mapping[str, Bridge]
    statistics: Collection

    @property
    def paths(self) -> tuple[MixturePath, ...]:
        """All mixture paths."""
        return mixture_paths(len(self.features))

    def inputs(
        self, path: MixturePath, variables: Variables, batch: TrainingBatch
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`(trained, fixed)`, the arguments of `follow`."""
        before = variables["batch_stats"]
        if path.to_teacher:
            statistics = {path.name: before[path.name]} if path.name in before else {}
            fixed = {"variables": batch.teacher_variables, "statistics": statistics}
            return {"features": self.bridged[path.switch - 1]}, fixed
        params = after_stage(batch.pair.student, path.switch).select({"params": batch.student_params})["params"]
        trained = {"bridge": variables["params"][path.bridge], "params": params}
        statistics = {name: before[name] for name in (path.bridge, path.name)}
        return trained, {"features": self.features[path.switch], "statistics": statistics}


def feature_differences(
    features: Mapping[int, Float[Array, "batch _ _ _"]], targets: Sequence[Float[Array, "batch _ _ _"]]
) -> dict[str, Float[Array, ""]]:
    """The squared differences of features by stage, `stage1`, ..., and that of the pooled last ones, `pooled`."""
    found = {f"stage{stage}": hint_loss(x, targets[stage]) for stage, x in features.items()}
    if len(targets) - 1 in features:
        last, target = (pooled_after_relu(x) for x in (features[len(targets) - 1], targets[-1]))
        found["pooled"] = hint_loss(last[:, None, None], target[:, None, None])
    return found


def _path_loss(
    objective: FCFD,
    pair: Pair,
    path: MixturePath,
    bridge: Bridge,
    trained: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> tuple[Float[Array, ""], dict[str, Array], Collection]:
    features, logits, statistics = follow(path, pair, bridge, trained, fixed)
    targets, target = fixed["target"]
    divergence = kd_loss(logits, target, temperature=objective.temperature)
    differences = jnp.zeros_like(divergence)
    if path.to_teacher:
        differences = sum(feature_differences(features, targets).values(), start=differences)
    loss = objective.mixture_weight * divergence + fixed["weight"] * differences
    return loss, {"divergence": divergence, "differences": differences}, statistics
