"""Checks that the features of student and teachers have the form that an objective reads."""

from kd_local.distill.objective import Objective
from kd_local.distill.objectives.registry import OBJECTIVES
from kd_local.networks import Network


def check_features(objective: Objective, student: Network, teachers: tuple[Network, ...]) -> None:
    """Checks that the networks have the features that an objective reads.

    Raises:
        ValueError: a network whose features have another form.
    """
    fitting = [
        name
        for name, kind in OBJECTIVES.items()
        if all(network.has_features(tokens=kind.takes_tokens) for network in _read_networks(kind, student, teachers))
    ]
    instead = f"a method for these networks: end_to_end, {', '.join(fitting)}"
    for network in _read_networks(objective, student, teachers):
        network.check_maps(objective.label, tokens=objective.takes_tokens, instead=instead)


def _read_networks(
    objective: Objective | type[Objective], student: Network, teachers: tuple[Network, ...]
) -> tuple[Network, ...]:
    """The networks of which an objective reads more than the logits."""
    of_teachers = objective.reads != "logits"
    return (student,) * (of_teachers or objective.reads_student_features) + teachers * of_teachers
