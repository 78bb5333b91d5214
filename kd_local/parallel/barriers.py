"""Messages between processes through JAX's coordination service, which process 0 runs.

Messages do not use the devices, so any thread may send them while the devices compute. The keys of a `Barrier` or
`Broadcast` contain its name and a number. The counters of these numbers are global because the service is: a key is
written once in a run.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from kd_local.parallel.hosts import HostsError, LossError, coordination, is_first, lost

_LOOK_SECONDS = 0.5
_numbers: Counter[str] = Counter()


class Barrier:
    """A point where all processes wait for each other. It can be used repeatedly, until one process gives up.

    All processes create the barriers of one name in the same order, and use each barrier from one thread at a time. A
    single process never waits.
    """

    def __init__(self, name: str) -> None:
        self._key = f"kd_local/{name}/{_numbers[name]}"
        _numbers[name] += 1
        self._round = 0

    def wait(self, text: str = "", *, seconds: int) -> list[str]:
        """Sends a text, waits for the texts of all processes, and returns them in the order of the processes.

        Raises:
            HostsError: a process gave up (the error has its reason), or did not arrive within `seconds`.
            LossError: the runtime reports a process as lost.
        """
        count, index = jax.process_count(), jax.process_index()
        if count == 1:
            return [text]
        client = coordination()
        key, deadline = f"{self._key}/{self._round}", time.monotonic() + seconds
        try:
            client.key_value_set(f"{key}/{index}", text)
            texts = [self._said(f"{key}/{other}", other, deadline, seconds) for other in range(count)]
            if self._round:  # all processes have left the round before, since they are in this one
                client.key_value_delete(f"{self._key}/{self._round - 1}/{index}")
        except jax.errors.JaxRuntimeError as error:
            raise LossError(lost()) from error
        self._round += 1
        return texts

    def give_up(self, reason: object) -> None:
        """Tells the other processes why this one will not arrive. After this the barrier cannot be used."""
        if jax.process_count() == 1:
            return
        try:
            coordination().key_value_set(
                f"{self._key}/gave_up/{jax.process_index()}", str(reason), allow_overwrite=True
            )
        except jax.errors.JaxRuntimeError:
            return  # process 0 is lost, which runs the service

    @contextmanager
    def together(self, *, seconds: int) -> Iterator[None]:
        """Runs the block in each process, then waits. If the block fails in one, `wait` raises in the others."""
        try:
            yield
        except Exception as error:
            self.give_up(error)
            raise
        self.wait(seconds=seconds)

    def decide(self, decision: Callable[[], Any], *, seconds: int) -> Any:
        """Returns the result of `decision` in process 0 (a JSON value) in every process. If it fails, all raise."""
        if not is_first():
            return json.loads(self.wait(seconds=seconds)[0])
        try:
            text = json.dumps(decision())
        except Exception as error:
            self.give_up(error)
            raise
        return json.loads(self.wait(text, seconds=seconds)[0])

    def _said(self, key: str, other: int, deadline: float, seconds: int) -> str:
        client = coordination()
        while True:
            try:
                return str(client.blocking_key_value_get(key, int(_LOOK_SECONDS * 1000)))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            for place, reason in client.key_value_dir_get(f"{self._key}/gave_up/"):
                raise HostsError(f"process {place.rsplit('/', 1)[1]}: {reason}")
            if time.monotonic() > deadline:
                raise HostsError(f"process {other} did not arrive within {seconds} s: look at its output")


class Broadcast:
    """Short texts under keys. A key is written once, and all processes can read it.

    All processes create the broadcasts of one name in the same order.
    """

    def __init__(self, name: str) -> None:
        self._key = f"kd_local/{name}/{_numbers[name]}"
        _numbers[name] += 1

    def write_once(self, key: str, text: str) -> None:
        """Writes the text unless another process has written one under this key.

        Raises:
            LossError: process 0 is lost.
        """
        try:
            coordination().key_value_set(f"{self._key}/{key}", text)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise LossError(lost()) from error

    def read(self, key: str) -> str | None:
        """The text under this key; None if there is none yet.

        Raises:
            LossError: process 0 is lost.
        """
        try:
            return str(coordination().key_value_try_get(f"{self._key}/{key}"))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise LossError(lost()) from error
