"""Makes the record of the step from which a run resumes, if it is missing in the run's files."""

from collections.abc import Callable, Collection

import jax
import optax

from kd_local.contract import State
from kd_local.training.records import EpochRecord, SplitScores, TrainingPlan


def missing_record(
    evaluate: Callable[[State], dict[str, SplitScores]],
    state: State,
    plan: TrainingPlan,
    recorded: Collection[int] | None,
    *,
    schedule: optax.Schedule | None,
) -> EpochRecord | None:
    """The record of the plan's first step, if this step ends an epoch or the run and is not among `recorded`.

    The record has the scores of the state. The training metrics and times of this epoch are lost.
    """
    step = plan.first_step
    if recorded is None or step in recorded or not step or (step % plan.steps_per_epoch and step != plan.last_step):
        return None
    scores = evaluate(state)
    with jax.transfer_guard("allow"):
        learning_rate = None if schedule is None else float(schedule(step - 1))
    return EpochRecord(
        epoch=step / plan.steps_per_epoch,
        step=step,
        train={},
        test=scores["test"],
        validation=scores.get("validation"),
        seconds=0.0,
        images_per_second=0.0,
        data_wait_seconds=0.0,
        learning_rate=learning_rate,
    )
