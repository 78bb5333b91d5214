"""Decides when a run saves its state, and restores the newest checkpoint."""

import time
from dataclasses import replace

import jax

from kd_local.contract import State
from kd_local.training.agreement import SAVE, Agreement
from kd_local.training.checkpoints import CheckpointError, Checkpoints
from kd_local.training.finite import StateCheck
from kd_local.training.interruption import StopRequest
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
    """Saves the state at intervals and when the run is to stop, in all processes after the same step.

    Args:
        checkpoints: where to save; None: nothing is saved.
        seconds: the shortest time between two checkpoints.
        interruption: its `received` stops the run; its `loses` is set.
        agreement: the agreement of all processes.
        first_step: the number of steps done before this start.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        seconds: float,
        interruption: StopRequest | None,
        agreement: Agreement,
        check: StateCheck,
        *,
        first_step: int,
    ) -> None:
        self._checkpoints = checkpoints
        self._seconds = seconds
        self._interruption = interruption
        self._agreement = agreement
        self._check = check
        self._saved = time.monotonic()
        self._first = self._taken = first_step
        if interruption is not None:
            interruption.loses = self._loses

    def taken(self, step: int) -> None:
        """Record that a step was dispatched: from now on the end of the process loses it, until it is saved."""
        self._taken = step

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
        return agreed if agreed > 0 else None

    def _loses(self) -> bool:
        saved = self._checkpoints.complete if self._checkpoints is not None else None
        return self._taken > max(self._first, saved or 0)
