"""ContSup with a teacher: local distillation."""

from dataclasses import dataclass, field

from jaxtyping import Array, Float

from kd_local.contract import State
from kd_local.distill.teacher import renormalised
from kd_local.distill.teacher_auxiliary import TEACHER, TeacherRule
from kd_local.errors import check_type
from kd_local.local.contsup import ContSup


@dataclass(frozen=True)
class TaughtContSup(ContSup):
    """`ContSup` of a network that was cut with a `TeacherRule`, which also gives the teacher's logits.

    >>> import jax, jax.numpy as jnp, optax
    >>> from kd_local.distill import TaughtContSup, Teacher, TeacherRule
    >>> from kd_local.local import cut, stage_boundaries
    >>> from kd_local.models import create
    >>> teacher, student = create("resnet20", classes=10), create("resnet8", classes=10)
    >>> variables = teacher.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    >>> rule = TeacherRule(Teacher(teacher, variables), (32, 32, 3))
    >>> cut_network = cut(student, classes=10, boundaries=stage_boundaries(student), context="R0", auxiliary=rule)
    >>> [program.name for program in TaughtContSup(cut_network, optax.sgd(0.1), rule=rule).programs()]
    ['teacher', 'module00', 'module01', 'module02']

    Attributes:
        rule: the rule with which the network was cut.

    Raises:
        ValueError: see `ContSup`; or the network was cut with another rule.
    """

    rule: TeacherRule = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_type("rule", self.rule, TeacherRule, "use the TeacherRule with which the network was cut")
        if [part.program.key for part in self.cut_network.before] != [self.rule.targets().program.key]:
            raise ValueError("the network was not cut with this teacher: use cut(..., auxiliary=rule)")

    def teacher_logits(
        self, state: State, images: Float[Array, "batch h w c"]
    ) -> dict[str, Float[Array, "batch classes"]]:
        """The teacher's logits by its name, in evaluation mode."""
        teacher = self.rule.teacher
        own = renormalised(images, teacher.renormalisation)
        return {TEACHER: teacher.network.apply(state[TEACHER], own, train=False)[0]}
