"""Makes the record of the step from which a run resumes, if it is missing in the run's files."""

from collections.abc import Collection

import jax
import optax
from jax.sharding import Mesh

from kd_local.contract import Method, State
from kd_local.data import Data
from kd_local.training.evaluation import evaluate
from kd_local.training.records import EpochRecord, TrainingPlan


def missing_record(
    method: Method,
    state: State,
    data: Data,
    plan: TrainingPlan,
    recorded: Collection[int] | None,
    *,
    mesh: Mesh,
    schedule: optax.Schedule | None,
) -> EpochRecord | None:
    """The record of the plan's first step, if this step ends an epoch or the run and is not among `recorded`.

    The record has the scores of the state. The training metrics and times of this epoch are lost.
    """
    step = plan.first_step
    if recorded is None or step in recorded or not step or (step % plan.steps_per_epoch and step != plan.last_step):
        return None
    scores = evaluate(method, state, data, batch_size=plan.batch_size, mesh=mesh)
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
