"""Decides when a run saves its state, and restores the newest checkpoint."""

import time
from dataclasses import replace

import jax

from kd_local.contract import State
from kd_local.training.agreement import SAVE, Agreement
from kd_local.training.checkpoints import CheckpointError, Checkpoints
from kd_local.training.finite import StateCheck
from kd_local.training.interruption import Interruption
from kd_local.training.metrics import EpochMetrics
from kd_local.training.records import TrainingPlan


def restore(
    checkpoints: Checkpoints | None, state: State, metrics: EpochMetrics, plan: TrainingPlan, check: StateCheck
) -> tuple[State, TrainingPlan]:
    """The state of the newest checkpoint, and the plan from its step on. Without a checkpoint both are unchanged.

    Raises:
        ValueError: the checkpoint has more steps than the run, or there is none and the given state is not finite.
        CheckpointError: the state of the checkpoint is not finite; see `Checkpoints.restore_latest` too.
    """
    restored = None if checkpoints is None else checkpoints.restore_latest({"state": state, "sums": metrics.sums})
    if restored is None:
        check.begin(state, plan.first_step)
        return state, plan
    assert checkpoints is not None
    step, tree = restored
    if step > plan.last_step:
        raise ValueError(
            f"the newest checkpoint has {step} steps, and the run ends after {plan.last_step}: train for more, or use "
            "another directory"
        )
    try:
        check.begin(tree["state"], step)
    except ValueError as error:
        folder = checkpoints.directory
        raise CheckpointError(
            f"checkpoint {step} in {folder} cannot be used: {error}; delete {folder / str(step)} to use the one "
            "before, or use another directory"
        ) from error
    metrics.resume(tree["sums"], step % plan.steps_per_epoch * plan.batch_size)
    return tree["state"], replace(plan, first_step=step)


class Saving:
    """Saves the state at intervals and when the run is to stop, in all processes after the same step."""

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        seconds: float,
        interruption: Interruption | None,
        agreement: Agreement,
        check: StateCheck,
    ) -> None:
        self._checkpoints = checkpoints
        self._seconds = seconds
        self._interruption = interruption
        self._agreement = agreement
        self._check = check
        self._saved = time.monotonic()

    def after(self, step: int, state: State, metrics: EpochMetrics, *, last: bool) -> int | None:
        """Saves after a step, if the processes agreed on it or if it is the last step.

        Returns the signal that stops the run after this step; None if the run continues.

        Raises:
            NotFiniteError: what is to be saved is not finite.
        """
        due = self._checkpoints is not None and time.monotonic() - self._saved >= self._seconds
        received = self._interruption.received if self._interruption is not None else None
        agreed = self._agreement.after(step, received or (SAVE if due else 0))
        if self._checkpoints is not None and (agreed or last):
            metrics.settle()
            self._check.settle(step, state)
            with jax.transfer_guard("allow"):
                self._checkpoints.save(step, {"state": state, "sums": metrics.sums})
            self._saved = time.monotonic()
        return agreed if agreed > SAVE else None
