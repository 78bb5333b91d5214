"""Makes all processes act on one process's request after the same step."""

import jax

from kd_local.parallel.barriers import Broadcast

SAVE = -1
"""The request to save. A request to stop is the number of a signal, 1 (SIGHUP) or more."""


class Agreement:
    """A request made after a step takes effect after a later step that no process has reached yet.

    The process that makes the request publishes that later step through JAX's coordination service:

        after step s               the process publishes s + ahead, before it dispatches the next call
        metrics of a call          are read only when all processes have taken its steps
        any process                is at most `in_flight` batches ahead of the metrics that it has read
        so every other process     is before step s + ahead, and reads the request in time

    Args:
        in_flight: calls that are dispatched before the metrics of the first of them are read.
        steps_per_call: the most steps of a call.
    """

    def __init__(self, in_flight: int, steps_per_call: int = 1) -> None:
        # Every second step may have an epoch's last, smaller batch, which each process computes by itself.
        self._ahead = steps_per_call * (2 * (in_flight + 1) + 2)
        self._broadcast = Broadcast("agreement")
        self._count = 0

    def after(self, step: int, wish: int) -> int:
        """The request to carry out now, after this step; 0 if there is none. Call it after every call.

        Args:
            step: number of steps done.
            wish: this process's request, or 0.

        Raises:
            HostsError: another process is lost.
        """
        if jax.process_count() == 1:
            return wish
        key = str(self._count)
        if wish:
            self._broadcast.write_once(key, f"{step + self._ahead} {wish}")
        text = self._broadcast.read(key)
        if text is None:
            return 0
        agreed, what = map(int, text.split())
        if step < agreed:
            return 0
        self._count += 1
        return what
