"""Local distillation: gradient-isolated student modules, each with the teacher's remaining blocks as its head.

Module i is the student's stage i. It is trained with the loss of stepping stone N_i: the stage's output goes through a
connector and the teacher's remaining blocks, which take the place of a local head. No gradient crosses a cut, so memory
falls as in greedy local learning.

The method combines the gradient-isolated modules of Yu et al. (arXiv 2312.07636) with the stepping stones of Yu et al.
(arXiv 2411.01547).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import Metrics, Program, State
from kd_local.data.pixels import check_channels_last, check_image_shape
from kd_local.distill.connector import Connector
from kd_local.distill.objective import Pair
from kd_local.distill.outputs import output_shapes
from kd_local.distill.stepping_stones import Stone, connector_to, stepping_stones
from kd_local.distill.stone_loss import StoneLoss
from kd_local.distill.teacher import Renormalisation, Teacher, remaining_blocks, renormalised
from kd_local.errors import check_type
from kd_local.local.losses import softmax
from kd_local.local.task_loss import PLAIN, TaskLoss
from kd_local.networks import Network, Variables, apply_block, by_block, check_network, init_block, of_block
from kd_local.precision import at_least_float32
from kd_local.state import Part, check_optimizer, new_part, update_part, variables_of

TEACHER = "teacher"


@dataclass(frozen=True)
class StudentModule:
    """A module of the student, and the place where its features enter the teacher.

    Attributes:
        name: such as `module02`. It is also the name of the module's part of the state.
        blocks: the module's blocks of the student. The last module also has the student's head.
        stone: the stepping stone; None if the last module has only the student's logits.
        end: the number of blocks before the stone.
        connector: the connector to the teacher; None without a stone.
        reads: the name of the module's input.
        writes: the name of the module's output, which the next module reads; empty for the last module.
    """

    name: str
    blocks: Network
    stone: Stone | None
    end: int
    connector: Connector | None
    reads: str
    writes: tuple[str, ...]

    @property
    def last(self) -> bool:
        """True if the module's output is the student's logits."""
        return not self.writes


@dataclass(frozen=True)
class LocalDistillation:
    """Trains each stage of a student with the loss of the stepping stone after it, with one program per stage.

    Attributes:
        student: the network to train.
        teacher: a frozen network.
        objective: the loss of every stone.
        optimizer: updates each module and its connector.
        shape: height, width and channels of the images.
        task_loss: the cross entropy of the labels.

    Raises:
        ValueError: an argument has another type, `objective.stones` names a stone that the two networks do not have, or
            a network has no maps.
    """

    student: Network
    teacher: Teacher
    objective: StoneLoss
    optimizer: optax.GradientTransformation
    shape: tuple[int, int, int]
    task_loss: TaskLoss = PLAIN

    def __post_init__(self) -> None:
        check_network("student", self.student)
        check_type("teacher", self.teacher, Teacher, "use one Teacher(network, variables)")
        check_type("objective", self.objective, StoneLoss, "use StoneLoss()")
        check_optimizer(self.optimizer)
        check_type("task_loss", self.task_loss, TaskLoss, "use TaskLoss(label_smoothing=0.1), or leave it out")
        check_image_shape(self.shape)
        for network in (self.student, self.teacher.network):
            network.check_maps("local distillation")
        check_channels_last(self.shape)
        if self.objective.alpha == 0:
            self.task_loss.check_used("the cross entropy of the labels has weight 0", "use a larger alpha")
        _ = self.modules  # refuses stones that do not exist

    @property
    def pair(self) -> Pair:
        """The student and its teacher."""
        return Pair(self.student, self.teacher.network)

    @cached_property
    def modules(self) -> tuple[StudentModule, ...]:
        """The student's modules, in order."""
        images = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        shapes = output_shapes(self.teacher.network, images)
        stones = stepping_stones(output_shapes(self.student, images), shapes, self.objective.stones)
        ends = [self.student.position(self.student.stages[stone.student]) + 1 for stone in stones]
        # The module of the last stage also has the student's head. Blocks after the last stone are a module without.
        cuts = [0, *(end for end, stone in zip(ends, stones, strict=True) if end < len(self.student) - 1)]
        modules = []
        for i, (start, stop) in enumerate(zip(cuts, [*cuts[1:], len(self.student)], strict=True)):
            stone = stones[i] if i < len(stones) else None
            modules.append(
                StudentModule(
                    name=f"module{i:02d}",
                    blocks=self.student[start:stop],
                    stone=stone,
                    end=(ends[i] - start) if stone else stop - start,
                    connector=connector_to(self.pair, shapes, stone.teacher) if stone else None,
                    reads="images" if i == 0 else f"features{i - 1}",
                    writes=(f"features{i}",) if stop < len(self.student) else (),
                )
            )
        return tuple(modules)

    def init(self, rng: PRNGKeyArray, images: Float[Array, "batch h w c"] | jax.ShapeDtypeStruct) -> State:
        """A new student, new connectors, and a copy of the teacher. Only the shape and dtype of `images` matter.

        Raises:
            ValueError: the teacher's variables do not fit its network, or the images do not have the shape `shape`.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images of shape {tuple(images.shape[1:])}: this method was made for {self.shape}; make it with "
                f"shape={tuple(images.shape[1:])}"
            )
        self.teacher.network.check(self.teacher.variables, images)
        state: State = {TEACHER: jax.tree.map(jnp.array, variables_of(self.teacher.variables))}
        x: Any = jax.ShapeDtypeStruct((1, *self.shape), images.dtype)
        modules = self.modules
        for module, key in zip(modules, jax.random.split(rng, len(modules)), strict=True):
            blocks_rng, connector_rng = jax.random.split(key)
            created: dict[str, Mapping[str, Any]] = {"blocks": module.blocks.init(blocks_rng, x)}
            stone = jax.eval_shape(partial(_at_stone, module), created["blocks"], x)
            if module.connector is not None:
                created["connector"] = init_block(module.connector, connector_rng, stone)
            state[module.name] = new_part(by_block(created), self.optimizer)
            x = stone
        return state

    def programs(self) -> tuple[Program, ...]:
        """A program for the teacher's logits, then one program per module."""
        teacher = Program(
            name=TEACHER,
            key=("teacher", self.teacher.network, self.teacher.renormalisation),
            function=partial(_teacher_logits, self.teacher.network, self.teacher.renormalisation),
            reads=("images", "labels"),
            writes=("teacher_logits",),
            trains=False,
        )
        students = tuple(
            Program(
                name=module.name,
                key=(module, self.pair, self.objective, self.task_loss, self.optimizer),
                function=partial(
                    _train_module, module, self.teacher.network, self.objective, self.task_loss, self.optimizer
                ),
                reads=(module.reads, "labels", "teacher_logits"),
                writes=module.writes,
                frozen=(TEACHER,),
            )
            for module in self.modules
        )
        return (teacher, *students)

    def logits(self, state: State, images: Float[Array, "batch h w c"]) -> Float[Array, "batch classes"]:
        """The student's logits in evaluation mode."""
        return self.student.apply(self.network_variables(state), images, train=False)[0]

    def exits(self, state: State, images: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "batch classes"]]:
        """The logits of the stepping stones by name, in evaluation mode."""
        found = {}
        x: Array = images
        for module in self.modules:
            part = state[module.name]
            x, _ = module.blocks[: module.end].apply(of_block(part, "blocks"), x, train=False)
            if module.stone is not None and module.connector is not None:
                entered, _ = apply_block(module.connector, of_block(part, "connector"), x, train=False)
                found[module.stone.name] = remaining_blocks(
                    self.teacher.network, state[TEACHER], module.stone.teacher, entered
                )
        return found

    def deployed(self, state: State) -> Mapping[str, Any]:
        """The student's parameters."""
        return self.network_variables(state)["params"]

    @property
    def deployed_program(self) -> str:
        """The name of the last module, whose output is the student's logits."""
        return self.modules[-1].name

    def teacher_logits(
        self, state: State, images: Float[Array, "batch h w c"]
    ) -> dict[str, Float[Array, "batch classes"]]:
        """The teacher's logits by its name, in evaluation mode."""
        own = renormalised(images, self.teacher.renormalisation)
        return {TEACHER: self.teacher.network.apply(state[TEACHER], own, train=False)[0]}

    def network_variables(self, state: State) -> Variables:
        """The student's variables."""
        return by_block(
            {
                name: of_block(of_block(state[module.name], "blocks"), name)
                for module in self.modules
                for name in module.blocks.names
            }
        )


def _at_stone(module: StudentModule, variables: Variables, x: Array) -> Array:
    return module.blocks[: module.end].apply(variables, x, train=False)[0]


def _teacher_logits(
    network: Network,
    renormalisation: Renormalisation | None,
    part: Part,
    frozen: tuple[()],
    tensors: tuple[Array, ...],
    rng: PRNGKeyArray,
    constants: Float[Array, "0"],
) -> tuple[Part, tuple[Array, ...], Metrics]:
    images, labels = tensors
    logits, _ = network.apply(part, renormalised(images, renormalisation), train=False)
    logits = logits.astype(at_least_float32(logits.dtype))
    return part, (logits,), softmax(logits, labels)


def _train_module(
    module: StudentModule,
    teacher: Network,
    stone_loss: StoneLoss,
    task_loss: TaskLoss,
    optimizer: optax.GradientTransformation,
    part: Part,
    frozen: tuple[Any, ...],
    tensors: tuple[Array, ...],
    rng: PRNGKeyArray,
    constants: Float[Array, "0"],
) -> tuple[Part, tuple[Array, ...], Metrics]:
    x, labels, target = tensors

    def objective(params: Any) -> tuple[Array, tuple[Any, tuple[Metrics, tuple[Array, ...]]]]:
        variables = {"params": params, "batch_stats": part["batch_stats"]}
        to_stone, behind = module.blocks[: module.end], module.blocks.names[module.end :]
        blocks = of_block(variables, "blocks")
        features, statistics = to_stone.apply(to_stone.select(blocks), x, train=True)
        batch_stats: dict[str, Any] = {"blocks": statistics}
        losses: list[Array] = []
        metrics: Metrics = {}
        if module.stone is not None and module.connector is not None:
            entered, batch_stats["connector"] = apply_block(
                module.connector, of_block(variables, "connector"), features, train=True
            )
            logits = remaining_blocks(teacher, frozen[0], module.stone.teacher, entered)
            loss, metrics = stone_loss(logits, target, labels, task_loss)
            losses.append(loss if not module.last else module.stone.weight * loss)
        if module.last:
            student_logits = features
            if behind:
                head = module.blocks[module.end :]
                student_logits, more = head.apply(head.select(blocks), features, train=True)
                batch_stats["blocks"] = {**statistics, **more}
            loss, own = stone_loss(student_logits, target, labels, task_loss)
            losses.append(loss)
            metrics = {**{f"stone_{name}": value for name, value in metrics.items()}, **own}
        written = () if module.last else (jax.lax.stop_gradient(features),)
        total = jnp.stack(losses).sum()
        return total, (batch_stats, ({**metrics, "loss": total}, written))

    part, _, (metrics, written) = update_part(part, optimizer, objective)
    return part, written, metrics
