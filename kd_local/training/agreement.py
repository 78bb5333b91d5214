"""When all processes do a thing that one of them wants: after the same step."""

import jax

from kd_local.parallel.barriers import Broadcast

SAVE = 1
"""The wish to save. To stop is the number of a signal, which is always greater."""


class Agreement:
    """What one process wishes after a step, all do after a later one, which none of them has reached yet.

    A process that wishes names that step through JAX's coordination service, before it dispatches another one. No other
    can have passed it: to read the metrics of a step takes all processes, and nobody is further ahead of what it has
    read than batches are in flight.

    Args:
        in_flight: steps that are dispatched before the metrics of the first of them are read.
    """

    def __init__(self, in_flight: int) -> None:
        # Every other step may be of an epoch's last, smaller batch, which each process computes by itself.
        self._ahead = 2 * (in_flight + 1) + 2
        self._broadcast = Broadcast("agreement")
        self._count = 0

    def after(self, step: int, wish: int) -> int:
        """What to do now, after this step: a wish of any process, or 0 for nothing. To be called after every step.

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
