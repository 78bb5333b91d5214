"""A student whose modules learn through a teacher."""

from collections.abc import Sequence
from typing import Any

import optax

from kd_local.distill import StoneLoss, TaughtContSup, Teacher, TeacherRule
from kd_local.local import cut, stage_boundaries
from kd_local.networks import Network


def locally_taught(
    student: Network,
    teacher: Teacher,
    shape: tuple[int, int, int],
    optimizer: optax.GradientTransformation,
    *,
    objective: StoneLoss = StoneLoss(),  # noqa: B008
    boundaries: Sequence[str] | None = None,
    context: str = "R0",
    **arguments: Any,
) -> TaughtContSup:
    """The method for a student, by default cut after its stages."""
    rule = TeacherRule(teacher, shape, objective)
    places = stage_boundaries(student) if boundaries is None else boundaries
    classes = student.modules[-1].classes
    cut_network = cut(student, classes=classes, boundaries=places, context=context, auxiliary=rule, **arguments)
    return TaughtContSup(cut_network, optimizer, rule=rule)
