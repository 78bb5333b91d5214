"""Local distillation: the auxiliary network of a module is a connector and the frozen teacher's remaining blocks.

Each module is trained with the loss of a stepping stone, `StoneLoss`. The stone of a boundary consists of the student's
blocks before the boundary, the connector, and the teacher's blocks after a stage. No gradient crosses a boundary, so
memory falls as in greedy local learning.

The method combines the gradient-isolated modules of Yu et al. (arXiv 2312.07636) with the stepping stones of Yu et al.
(arXiv 2411.01547).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kd_local.contract import Metrics, Program
from kd_local.data.pixels import check_channels_last, check_image_shape
from kd_local.distill.connector import Connector
from kd_local.distill.outputs import output_shapes
from kd_local.distill.stages import rectified
from kd_local.distill.stone_loss import StoneLoss
from kd_local.distill.teacher import Renormalisation, Teacher, remaining_blocks, renormalised
from kd_local.errors import check_type
from kd_local.local.auxiliary import Apply, Attachment, Boundary, Branch, UntrainedPart
from kd_local.local.losses import softmax
from kd_local.local.task_loss import TaskLoss
from kd_local.networks import Network, init_block
from kd_local.precision import at_least_float32
from kd_local.state import Part, variables_of

TEACHER = "teacher"
"""The name of the teacher's program and of its part of the state."""
_DEFAULT = StoneLoss()


class StoneHead(nn.Module):
    """A connector, then the teacher's blocks after a stage, in evaluation mode.

    Attributes:
        shape: (h, w, c) of the teacher's features after the stage, or (1, class tokens + patches, c).
        relu: True if the connector ends in a ReLU.
        teacher: the teacher's network.
        stage: index of the teacher's stage; 0 is the stem.
        class_tokens: of student and teacher; 0 for maps.
    """

    shape: tuple[int, int, int]
    relu: bool
    teacher: Network
    stage: int
    class_tokens: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"], teacher: Any = None, *, train: bool) -> Array:
        """The teacher's logits; without the teacher's variables, the connector's output."""
        connector = Connector(self.shape, relu=self.relu, class_tokens=self.class_tokens, name="connector")
        entered = connector(x, train=train)
        return entered if teacher is None else remaining_blocks(self.teacher, teacher, self.stage, entered)


@dataclass(frozen=True)
class Stone:
    """The auxiliary network of local distillation. See `Auxiliary`.

    Attributes:
        head: the connector and the teacher's blocks.
    """

    takes_tokens: ClassVar[bool] = True
    head: StoneHead

    def init(self, rng: PRNGKeyArray, output: jax.ShapeDtypeStruct) -> Mapping[str, Mapping[str, Any]]:
        """New variables of the connector."""
        return {"head": init_block(self.head, rng, output)}

    def __call__(
        self, apply: Apply, output: Float[Array, "batch h w c"], frozen: tuple[Any, ...]
    ) -> tuple[Float[Array, "batch h w c"], Float[Array, "batch k"]]:
        """The module's output, and the teacher's logits for it."""
        return output, apply("head", self.head, output, variables_of(frozen[0]))


@dataclass(frozen=True)
class TeacherRule:
    """Each module learns through the teacher's remaining blocks. See `AuxiliaryRule` and `TargetRule`.

    The stages of student and teacher, stems included, are paired from the last backwards. Features at a boundary enter
    the teacher after the stage that is paired with the boundary's stage, also if the boundary is inside its stage. A
    stage without a partner enters the teacher after its stem. The connector changes resolution and width to those of
    the teacher at that place. Boundaries after the student's stages, as of `stage_boundaries`, give the stepping stones
    of Block-KD.

    Student and teacher may have maps or class tokens, see `Connector`. Contexts and decoders need a student with maps.

    The last module has two losses, of the student's logits and, with `objective.last`, of a stone after the last stage.

    Attributes:
        teacher: a frozen network.
        shape: height, width and channels of the images.
        objective: the loss of every stone and of the student's logits.

    Raises:
        ValueError: an argument has another type, or the teacher has neither maps nor class tokens.
    """

    uses_head: ClassVar[bool] = False
    teacher: Teacher
    shape: tuple[int, int, int]
    objective: StoneLoss = _DEFAULT

    def __post_init__(self) -> None:
        check_type("teacher", self.teacher, Teacher, "use one Teacher(network, variables)")
        check_type("objective", self.objective, StoneLoss, "use StoneLoss()")
        check_image_shape(self.shape)
        check_channels_last(self.shape)
        self.teacher.network.check_maps("local distillation", tokens=True)

    @cached_property
    def _features(self) -> tuple[tuple[int, int, int], ...]:
        """The shape of the teacher's features after each stage, the stem first."""
        shapes = output_shapes(self.teacher.network, jax.ShapeDtypeStruct((1, *self.shape), jnp.float32))
        return tuple(features.shape[1:] for features in shapes.features)

    def at(self, boundary: Boundary) -> Attachment:
        """The stone of the module before a boundary.

        Raises:
            ValueError: the student has neither maps nor class tokens.
        """
        return Attachment(self._stone(boundary.network, boundary.end), frozen=(TEACHER,))

    def branch(self, network: Network) -> Branch | None:
        """The stone after the last stage; None without `objective.last`."""
        if not self.objective.last:
            return None
        end = network.position(network.stages[-1]) + 1
        return Branch(self._stone(network, end), end, "stone", frozen=(TEACHER,))

    def _stone(self, student: Network, end: int) -> Stone:
        student.check_maps("local distillation", tokens=True)
        stage, teacher = self.stage_of(student, end), self.teacher.network
        class_tokens = (student.class_tokens, teacher.class_tokens)
        return Stone(StoneHead(self._features[stage], rectified(teacher, stage), teacher, stage, class_tokens))

    def stage_of(self, student: Network, end: int) -> int:
        """The index of the teacher's stage after which the student's first `end` blocks enter; 0 is the stem."""
        ends = [student.position(name) + 1 for name in student.stages]
        after = sum(end <= other for other in ends)  # stages that end with the boundary or later
        return max(len(self._features) - max(after, 1), 0)

    def targets(self) -> UntrainedPart:
        """The teacher, whose program writes its logits."""
        network, renormalisation = self.teacher.network, self.teacher.renormalisation
        program = Program(
            name=TEACHER,
            key=("teacher", network, renormalisation),
            function=partial(_teacher_logits, network, renormalisation),
            reads=("images", "labels"),
            writes=("teacher_logits",),
            trains=False,
        )
        return UntrainedPart(program, self._init)

    def _init(self, rng: PRNGKeyArray, images: jax.ShapeDtypeStruct) -> Part:
        """A copy of the teacher's variables: a step may donate the state, and the arrays belong to the caller."""
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images of shape {tuple(images.shape[1:])}: this method was made for {self.shape}; make it with "
                f"shape={tuple(images.shape[1:])}"
            )
        self.teacher.network.check(self.teacher.variables, images)
        self.objective.check(output_shapes(self.teacher.network, images).logits)
        return jax.tree.map(jnp.array, variables_of(self.teacher.variables))

    def loss(self, task_loss: TaskLoss) -> StoneLoss:
        """The loss of every module.

        Raises:
            ValueError: the cross entropy of the labels has weight 0, and `task_loss` has options.
        """
        if self.objective.alpha == 0:
            task_loss.check_used("the cross entropy of the labels has weight 0", "use a larger alpha")
        return replace(self.objective, task_loss=task_loss)


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
